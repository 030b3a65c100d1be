//! Products of bfloat16 against float64 ones of the rounded numbers, by the processor's instructions and without them.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use proptest::prelude::*;
use wherefrom_linalg::kernels::*;
use wherefrom_linalg::random::normal;
use wherefrom_linalg::test_support::without_bf16_instructions;

/// What a test multiplies: its numbers, rounded or not, as rows or the other way round.
#[derive(Debug, Clone, Copy)]
struct Kind {
    rounded: bool,
    transposed: bool,
}

fn kinds() -> impl Strategy<Value = Kind> {
    (any::<bool>(), any::<bool>()).prop_map(|(rounded, transposed)| Kind { rounded, transposed })
}

fn tensor(values: &[f32], shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
}

/// Normal numbers [rows, cols] of a kind, and what they are once rounded, in float64.
fn random(seed: u64, [rows, cols]: [usize; 2], kind: Kind) -> (Tensor<2>, Vec<f64>) {
    let values: Vec<f32> = (0..(rows * cols) as u64).map(|i| normal(seed, 0, i) as f32).collect();
    let exact = values.iter().map(|&value| f64::from(half::bf16::from_f32(value).to_f32())).collect();
    let x = match kind.transposed {
        true => {
            let columns: Vec<f32> =
                (0..cols).flat_map(|j| (0..rows).map(move |i| (i, j))).map(|(i, j)| values[i * cols + j]).collect();
            typed(tensor(&columns, [cols, rows]), kind).transpose()
        }
        false => typed(tensor(&values, [rows, cols]), kind),
    };
    (x, exact)
}

fn typed(x: Tensor<2>, kind: Kind) -> Tensor<2> {
    if kind.rounded { round(x, FloatDType::BF16) } else { x }
}

fn values(x: Tensor<2>) -> Vec<f32> {
    assert_eq!(x.dtype(), DType::F32);
    x.into_data().try_into_vec().unwrap()
}

/// Sums of k products in float32 are off by no more than k half-units of the sum of their sizes.
fn check(found: &[f32], start: &[f64], (a, b): (&[f64], &[f64]), [m, k, n]: [usize; 3]) {
    assert_eq!(found.len(), m * n);
    for i in 0..m {
        for j in 0..n {
            let terms = || (0..k).map(|p| a[i * k + p] * b[p * n + j]);
            let (exact, size) =
                (start[i * n + j] + terms().sum::<f64>(), start[i * n + j].abs() + terms().map(f64::abs).sum::<f64>());
            let off = (f64::from(found[i * n + j]) - exact).abs();
            let bound = (k as f64 + 2.0).sqrt() * 4.0 * f64::from(f32::EPSILON) * size;
            assert!(off <= bound, "{m} {k} {n} at {i} {j}: {} in place of {exact}", found[i * n + j]);
        }
    }
}

fn check_product(sizes: [usize; 3], left: Kind, right: Kind) {
    let [m, k, n] = sizes;
    let ((a, exact_a), (b, exact_b)) = (random(1, [m, k], left), random(2, [k, n], right));
    // One of them says that the product is of bfloat16.
    let a = if right.rounded { a } else { round(a, FloatDType::BF16) };
    let c: Vec<f32> = (0..(m * n) as u64).map(|i| normal(3, 0, i) as f32).collect();
    let (zero, start) = (vec![0.0; m * n], c.iter().map(|&c| f64::from(c)).collect::<Vec<_>>());
    let run = || {
        check(&values(product(a.clone(), b.clone())), &zero, (&exact_a, &exact_b), sizes);
        check(&values(add_product(tensor(&c, [m, n]), a.clone(), b.clone())), &start, (&exact_a, &exact_b), sizes);
    };
    run();
    without_bf16_instructions(run);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn products_are_those_of_the_rounded_numbers(
        sizes in [1..70usize, 1..90usize, 1..120usize], left in kinds(), right in kinds(),
    ) {
        check_product(sizes, left, right);
    }
}

/// More rows, columns and depth than a block has, in parts that are not whole, with all threads.
#[test]
fn so_are_those_of_several_blocks() {
    let plain = Kind { rounded: false, transposed: false };
    let weight = Kind { rounded: true, transposed: true };
    for (sizes, left, right) in [
        ([5, 401, 8243], plain, weight),
        ([523, 769, 37], Kind { transposed: true, ..plain }, Kind { rounded: true, ..plain }),
        ([1, 1000, 33], plain, weight),
        ([1030, 3, 50], weight, plain),
    ] {
        check_product(sizes, left, right);
    }
}

#[test]
fn an_empty_sum_is_zero_and_an_empty_product_is_none() {
    let bf16 = |rows, cols| round(tensor(&vec![1.0; rows * cols], [rows, cols]), FloatDType::BF16);
    assert_eq!(values(product(bf16(2, 1).narrow(1, 0, 1), bf16(1, 3))), [1.0; 6]);
    let rows = bf16(3, 4).select(0, Tensor::from_data(TensorData::new(Vec::<i32>::new(), [0]), &Device::flex()));
    assert_eq!(product(rows.clone(), bf16(4, 2)).dims(), [0, 2]);
    assert_eq!(values(product(rows.transpose(), bf16(1, 2).narrow(0, 0, 1).slice([0..0, 0..2]))), [0.0; 8]);
}

/// Half-way numbers go to the even neighbour, infinities stay, and what is no number stays none.
#[test]
fn operands_are_rounded_to_the_nearest() {
    let wide = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.1 / 256.0, -1.0 - 1.0 / 256.0, f32::MAX, -f32::INFINITY];
    let near = [1.0, 1.0 + 4.0 / 256.0, 1.0 + 2.0 / 256.0, -1.0, f32::INFINITY, -f32::INFINITY];
    let n = wide.len();
    assert_eq!(values(widen(round(tensor(&wide, [1, n]), FloatDType::BF16))), near);
    let one = round(tensor(&[1.0], [1, 1]), FloatDType::BF16);
    let run = || {
        // As the left operand, as the right one, and along what is summed.
        assert_eq!(values(product(tensor(&wide, [n, 1]), one.clone())), near);
        assert_eq!(values(product(one.clone(), tensor(&wide, [1, n]))), near);
        let ones = round(tensor(&[1.0; 4], [4, 1]), FloatDType::BF16);
        assert_eq!(values(product(tensor(&wide[..4], [1, 4]), ones)), [near[..4].iter().sum::<f32>()]);
        assert!(values(product(tensor(&[f32::NAN], [1, 1]), one.clone()))[0].is_nan());
    };
    run();
    without_bf16_instructions(run);
}

/// d^T a by example, covariances, squares and scans of rounded numbers: as float32 kernels have them of those numbers.
#[test]
fn kernels_of_bfloat16_are_those_of_the_rounded_numbers() {
    let kind = Kind { rounded: true, transposed: false };
    let ((d, _), (a, _)) = (random(1, [150, 70], kind), random(2, [150, 110], kind));
    let examples = Ragged::new([40, 0, 60, 50]);
    let near = |found: Vec<f32>, expected: Vec<f32>, what: &str| {
        let scale = expected.iter().fold(1e-30f32, |m, x| m.max(x.abs()));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5 * scale, "{what}: {found} in place of {expected}");
        }
    };
    let both = |what: &str, run: &dyn Fn(Tensor<2>, Tensor<2>) -> Vec<f32>| {
        near(run(d.clone(), a.clone()), run(widen(d.clone()), widen(a.clone())), what);
    };
    both("gradients", &|d, a| values(example_products(d, a, &examples)));
    both("squares", &|d, a| values(weighted_squares(None, d, a, &examples)));
    both("covariance", &|_, a| {
        let mut sum = Sum::zeros(Form::Symmetric(110));
        sum.add_gram(a);
        sum.matrix()
    });
    both("lambda", &|d, a| {
        let mut sum = Sum::zeros(Form::Full([70, 110]));
        sum.add_squared_products(d, a, &examples);
        sum.matrix()
    });
    let plain = Kind { rounded: false, transposed: false };
    for count in [1, 40] {
        let ((left, _), (right, _)) = (random(3, [70, count * 4], kind), random(4, [count * 4, 110], kind));
        let (left, right) = (widen(left), widen(right));
        both("scan", &|d, a| values(scan(&left, &right, d, a, &examples, count)));
    }
    let ((d, _), (a, _)) = (random(1, [150, 70], plain), random(2, [150, 110], plain));
    assert_ne!(
        values(product(d.clone().transpose(), a.clone())),
        values(product(round(d, FloatDType::BF16).transpose(), a))
    );
}
