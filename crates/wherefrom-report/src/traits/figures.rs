//! Lines over sites or coefficients, each in the band of its controls, and histograms of scores. Drawn as SVG, without a script.

use maud::{Markup, html};

/// Size of a figure.
const WIDE: f64 = 560.0;
const HIGH: f64 = 240.0;
/// Room for the axes.
const LEFT: f64 = 54.0;
const TOP: f64 = 12.0;
const RIGHT: f64 = 12.0;
const BOTTOM: f64 = 38.0;
/// Labels on the axis of x, at most.
const LABELS: usize = 11;

/// A number of something at places from left to right.
pub(super) struct Lines<'a> {
    /// What the figure says, in a sentence.
    pub(super) says: String,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    /// Where each place is, and what is written under it.
    pub(super) places: Vec<(f64, String)>,
    pub(super) own: Vec<f64>,
    /// Lowest and highest of the controls at a place; none where there are none.
    pub(super) band: Vec<Option<[f64; 2]>>,
    /// Values that the axis of y has in any case.
    pub(super) includes: Vec<f64>,
}

impl Lines<'_> {
    pub(super) fn drawn(&self) -> Markup {
        let finite = |value: &f64| value.is_finite();
        let banded = self.band.iter().flatten().flatten();
        let all: Vec<f64> = self.own.iter().chain(banded).chain(&self.includes).copied().filter(finite).collect();
        let [low, high] = ends(&all);
        let [first, last] = ends(&self.places.iter().map(|(at, _)| *at).collect::<Vec<_>>());
        let across =
            |at: f64| LEFT + (WIDE - LEFT - RIGHT) * if last > first { (at - first) / (last - first) } else { 0.5 };
        let up = |value: f64| TOP + (HIGH - TOP - BOTTOM) * (high - value) / (high - low).max(f64::MIN_POSITIVE);
        let point = |at: f64, value: f64| format!("{:.1} {:.1}", across(at), up(value));
        let own: Vec<(f64, f64)> = self
            .places
            .iter()
            .zip(&self.own)
            .map(|((at, _), value)| (*at, *value))
            .filter(|(_, value)| value.is_finite())
            .collect();
        let line = |points: &[String]| format!("M{}", points.join("L"));
        let path = line(&own.iter().map(|&(at, value)| point(at, value)).collect::<Vec<_>>());
        let band: Vec<(f64, [f64; 2])> =
            self.places.iter().zip(&self.band).filter_map(|((at, _), band)| Some((*at, (*band)?))).collect();
        let around: Vec<String> = band
            .iter()
            .map(|&(at, [low, _])| point(at, low))
            .chain(band.iter().rev().map(|&(at, [_, high])| point(at, high)))
            .collect();
        let every = self.places.len().div_ceil(LABELS);
        html! {
            figure {
                svg viewBox=(format!("0 0 {WIDE} {HIGH}")) width=(WIDE) height=(HIGH) role="img" aria-label=(self.says) {
                    @for value in ticks(low, high) {
                        path.grid d=(format!("M{LEFT} {y:.1}H{end}", y = up(value), end = WIDE - RIGHT)) {}
                        text x=(LEFT - 6.0) y=(format!("{:.1}", up(value) + 4.0)) text-anchor="end" { (number(value)) }
                    }
                    @if low < 0.0 && high > 0.0 { path.axis d=(format!("M{LEFT} {y:.1}H{end}", y = up(0.0), end = WIDE - RIGHT)) {} }
                    @if band.len() > 1 { path.band d=(line(&around) + "Z") {} }
                    @for (at, [low, high]) in &band {
                        path.control d=(format!("M{x:.1} {low:.1}V{high:.1}", x = across(*at), low = up(*low), high = up(*high))) {}
                    }
                    @if own.len() > 1 { path.own d=(path) {} }
                    @for &(at, value) in &own {
                        circle.own cx=(format!("{:.1}", across(at))) cy=(format!("{:.1}", up(value))) r="2.6" { title { (number(value)) } }
                    }
                    @for (place, (at, name)) in self.places.iter().enumerate() {
                        @if place % every == 0 {
                            text x=(format!("{:.1}", across(*at))) y=(HIGH - BOTTOM + 15.0) text-anchor="middle" { (name) }
                        }
                    }
                    text x=(LEFT + (WIDE - LEFT - RIGHT) / 2.0) y=(HIGH - 4.0) text-anchor="middle" { (self.x) }
                    text transform=(format!("translate(11 {}) rotate(-90)", TOP + (HIGH - TOP - BOTTOM) / 2.0)) text-anchor="middle" { (self.y) }
                }
                figcaption { (self.says) }
            }
        }
    }
}

/// How many answers have which score, in bins of equal width from 0 to 100.
pub(super) fn histogram(says: &str, bins: &[usize], class: &str) -> Markup {
    let most = bins.iter().copied().max().unwrap_or(0).max(1) as f64;
    let (wide, high) = (280.0, 110.0);
    let each = (wide - 40.0) / bins.len() as f64;
    html! {
        figure {
            svg viewBox=(format!("0 0 {wide} {}", high + 22.0)) width=(wide) height=(high + 22.0) role="img" aria-label=(says) {
                text x="24" y="14" text-anchor="end" { (most) }
                text x="24" y=(high + 3.0) text-anchor="end" { "0" }
                @for (bin, &count) in bins.iter().enumerate() {
                    @let size = (high - 10.0) * count as f64 / most;
                    rect class=(class) x=(format!("{:.1}", 30.0 + each * bin as f64 + 1.0)) y=(format!("{:.1}", high - size)) width=(format!("{:.1}", each - 2.0)) height=(format!("{size:.1}")) {
                        title { (count) " answers" }
                    }
                }
                path.axis d=(format!("M30 {high}H{}", wide - 8.0)) {}
                text x="30" y=(high + 16.0) text-anchor="middle" { "0" }
                text x=(30.0 + each * bins.len() as f64 / 2.0) y=(high + 16.0) text-anchor="middle" { "50" }
                text x=(wide - 12.0) y=(high + 16.0) text-anchor="middle" { "100" }
            }
            figcaption { (says) }
        }
    }
}

/// Lowest and highest; 0 and 1 of nothing.
pub(super) fn ends(values: &[f64]) -> [f64; 2] {
    let [low, high] =
        values.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], &value| [low.min(value), high.max(value)]);
    if low > high { [0.0, 1.0] } else { [low, high] }
}

/// Some round values from low to high.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low).max(1e-12) / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|step| *step >= rough).unwrap_or(rough);
    let from = (low / step).ceil() as i64;
    let to = (high / step + 1e-9).floor() as i64;
    (from..=to).map(|at| at as f64 * step).collect()
}

/// Three figures, with a minus sign.
pub(super) fn number(value: f64) -> String {
    if value.is_nan() {
        return "–".into();
    }
    let decimals = match value.abs() {
        size if size >= 99.5 => 0,
        size if size >= 9.95 => 1,
        size if size >= 0.0995 || size == 0.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text };
    if text == "-0" { "0".into() } else { text.replace('-', "−") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_values_and_numbers_three_figures() {
        assert_eq!(ticks(0.0, 100.0), [0.0, 50.0, 100.0]);
        assert_eq!(ticks(0.5, 1.0).into_iter().map(number).collect::<Vec<_>>(), ["0.6", "0.8", "1"]);
        assert_eq!([0.0, -0.0, 0.5, 99.96, 12.345, -0.012].map(number), ["0", "0", "0.5", "100", "12.3", "−0.012"]);
        assert_eq!(number(f64::NAN), "–");
    }

    #[test]
    fn what_has_no_value_is_not_drawn() {
        let lines = Lines {
            says: "says".into(),
            x: "site",
            y: "norm",
            places: (0..3).map(|site| (f64::from(site), site.to_string())).collect(),
            own: vec![1.0, f64::NAN, 2.0],
            band: vec![None, Some([0.5, 1.5]), None],
            includes: vec![0.0],
        };
        let text = lines.drawn().into_string();
        assert_eq!(text.matches("<circle").count(), 2);
        assert_eq!(text.matches("class=\"control\"").count(), 1);
        assert!(!text.contains("NaN") && !text.contains("class=\"band\""), "{text}");
    }
}
