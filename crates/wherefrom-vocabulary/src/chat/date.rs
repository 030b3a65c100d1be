//! The day that a template is told.

use wherefrom_artifact::bad_input;

/// A day of the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    year: i64,
    month: usize,
    day: i64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Date {
    /// Reads a day: `2024-07-26`.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] where it is none.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let digits = text.bytes().enumerate().all(|(place, byte)| match place {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
        let number = |range: std::ops::Range<usize>| text.get(range).and_then(|digits| digits.parse::<i64>().ok());
        let date = (digits && text.len() == 10)
            .then(|| Some(Self { year: number(0..4)?, month: number(5..7)? as usize, day: number(8..10)? }))
            .flatten()
            .filter(|date| {
                date.year > 0 && (1..=12).contains(&date.month) && (1..=date.month_days()).contains(&date.day)
            });
        date.ok_or_else(|| {
            bad_input(format!("date = \"{text}\" is no day; write it as year, month and day: \"2024-07-26\""))
        })
    }

    fn month_days(self) -> i64 {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        match self.month {
            2 => 28 + i64::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    /// Days since the first of January, from 1.
    fn day_of_year(self) -> i64 {
        let before = (1..self.month).map(|month| Self { month, ..self }.month_days());
        before.sum::<i64>() + self.day
    }

    /// Days since Sunday.
    fn weekday(self) -> i64 {
        let years = self.year - 1;
        (years + years / 4 - years / 100 + years / 400 + self.day_of_year()) % 7
    }

    /// As Python's `strftime` writes it in the C locale, at midnight; none for a letter that it has not.
    pub(super) fn format(self, format: &str) -> Result<String, String> {
        let mut text = String::new();
        let mut rest = format.chars();
        while let Some(character) = rest.next() {
            if character != '%' {
                text.push(character);
                continue;
            }
            let mut letter = rest.next();
            let padded = letter != Some('-');
            if !padded {
                letter = rest.next();
            }
            text.push_str(
                &self
                    .field(letter, padded)
                    .ok_or_else(|| format!("the format {format:?} has a field that is not known"))?,
            );
        }
        Ok(text)
    }

    fn field(self, letter: Option<char>, padded: bool) -> Option<String> {
        let number = |value: i64, width: usize| if padded { format!("{value:0width$}") } else { value.to_string() };
        let (month, day) = (MONTHS.get(self.month - 1)?, DAYS.get(self.weekday() as usize)?);
        let week = |first: i64| (self.day_of_year() + 6 - (self.weekday() + 7 - first) % 7) / 7;
        Some(match letter? {
            'Y' => self.year.to_string(),
            'y' => number(self.year % 100, 2),
            'C' => number(self.year / 100, 2),
            'm' => number(self.month as i64, 2),
            'd' => number(self.day, 2),
            'e' => format!("{:>2}", self.day),
            'B' => (*month).into(),
            'b' | 'h' => month[..3].into(),
            'A' => (*day).into(),
            'a' => day[..3].into(),
            'j' => number(self.day_of_year(), 3),
            'w' => self.weekday().to_string(),
            'u' => (if self.weekday() == 0 { 7 } else { self.weekday() }).to_string(),
            'U' => number(week(0), 2),
            'W' => number(week(1), 2),
            'H' | 'M' | 'S' => number(0, 2),
            'I' => number(12, 2),
            'p' => "AM".into(),
            'f' => "000000".into(),
            'F' => self.format("%Y-%m-%d").ok()?,
            'D' | 'x' => self.format("%m/%d/%y").ok()?,
            'T' | 'X' => "00:00:00".into(),
            'R' => "00:00".into(),
            'r' => "12:00:00 AM".into(),
            'c' => self.format("%a %b %e 00:00:00 %Y").ok()?,
            'z' | 'Z' => String::new(),
            'n' => "\n".into(),
            't' => "\t".into(),
            '%' => "%".into(),
            _ => return None,
        })
    }
}
