use wherefrom_linalg::{Threads, random::normal, symmetric_eigen, truncated_svd};

fn random(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| normal(seed, 0, i) as f32).collect()
}

/// left right^T, [rows, cols].
fn multiply(left: &[f32], right: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let r = left.len() / rows;
    (0..rows * cols).map(|at| (0..r).map(|k| left[at / cols * r + k] * right[at % cols * r + k]).sum()).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn eigenvectors_rebuild_the_symmetric_part() {
    let n = 7;
    let c: Vec<f64> = (0..n * n).map(|i| normal(4, 0, i as u64)).collect();
    let (values, q) = symmetric_eigen(&c, n, Threads::All).unwrap();
    assert!(values.windows(2).all(|pair| pair[0] <= pair[1]), "ascending");
    for i in 0..n {
        for j in 0..n {
            let rebuilt: f64 = (0..n).map(|k| q[i * n + k] * values[k] * q[j * n + k]).sum();
            assert!((rebuilt - 0.5 * (c[i * n + j] + c[j * n + i])).abs() < 1e-12);
        }
    }
}

#[test]
fn eigen_names_what_is_not_finite() {
    let error = symmetric_eigen(&[1.0, 0.0, f64::NAN, 1.0], 2, Threads::One).unwrap_err().to_string();
    assert!(error.contains("NaN at row 1, column 0"), "{error}");
}

#[test]
fn svd_at_full_rank_is_exact_either_way_round() {
    for (rows, cols) in [(5, 9), (9, 5), (6, 6)] {
        let p = random(1, rows * cols);
        let (left, right) = truncated_svd(&p, rows, cols, 100, Threads::One).unwrap();
        assert_eq!(
            (left.len(), right.len()),
            (rows * 5.min(rows.min(cols)).max(rows.min(cols)), cols * rows.min(cols))
        );
        assert!(distance(&multiply(&left, &right, rows, cols), &p) < 1e-5);
    }
}

#[test]
fn svd_leaves_the_smallest_possible_error() {
    // Singular values 5, 3, 1 by construction: the best rank-2 error is 1.
    let (rows, cols, r) = (8, 6, 3);
    let (_, u) = symmetric_eigen(&(0..64).map(|i| normal(7, 0, i)).collect::<Vec<_>>(), rows, Threads::One).unwrap();
    let (_, v) = symmetric_eigen(&(0..36).map(|i| normal(8, 0, i)).collect::<Vec<_>>(), cols, Threads::One).unwrap();
    let sigma = [5.0, 3.0, 1.0];
    let p: Vec<f32> = (0..rows * cols)
        .map(|at| (0..r).map(|k| u[at / cols * rows + k] * sigma[k] * v[at % cols * cols + k]).sum::<f64>() as f32)
        .collect();
    for (p, rows, cols) in [(p.clone(), rows, cols), (transpose(&p, rows, cols), cols, rows)] {
        let (left, right) = truncated_svd(&p, rows, cols, 2, Threads::One).unwrap();
        assert_eq!((left.len(), right.len()), (rows * 2, cols * 2));
        assert!((distance(&multiply(&left, &right, rows, cols), &p) - 1.0).abs() < 1e-5);
        // Rank beyond the true one: nothing divides by a vanishing singular value.
        let (left, right) = truncated_svd(&p, rows, cols, 5, Threads::One).unwrap();
        assert!(distance(&multiply(&left, &right, rows, cols), &p) < 1e-5);
    }
}

fn transpose(p: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|at| p[at % rows * cols + at / rows]).collect()
}

/// A gradient of 100 tokens over curvature that falls like 1/k: its Gram matrix is one of those that `faer` leaves
/// unfinished.
fn preconditioned(rows: usize, cols: usize) -> Vec<f64> {
    let curvature = |k: usize| 1.0 / (1.0 + k as f64);
    let sum = |n: usize| (0..n).map(curvature).sum::<f64>();
    let damping = 0.1 * sum(rows) * sum(cols) / (rows * cols) as f64;
    let scaled = |seed: u64, n: usize| -> Vec<f64> {
        (0..n * 100).map(|at| curvature(at / 100).sqrt() * normal(seed, 0, at as u64)).collect()
    };
    let (d, a) = (scaled(1, rows), scaled(2, cols));
    (0..rows * cols)
        .map(|at| {
            let (i, j) = (at / cols, at % cols);
            let product: f64 = (0..100).map(|t| d[i * 100 + t] * a[j * 100 + t]).sum();
            product / (curvature(i) * curvature(j) + damping)
        })
        .collect()
}

#[test]
fn eigenvectors_are_exact_where_the_solver_leaves_them_unfinished() {
    for n in [200, 300, 400] {
        let p = preconditioned(2 * n, n);
        let mut c = vec![0.0; n * n];
        for row in p.chunks_exact(n) {
            for i in 0..n {
                for j in 0..n {
                    c[i * n + j] += row[i] * row[j];
                }
            }
        }
        let (values, q) = symmetric_eigen(&c, n, Threads::All).unwrap();
        let norm = c.iter().map(|x| x * x).sum::<f64>().sqrt();
        for k in 0..n {
            let residual: f64 = (0..n)
                .map(|i| ((0..n).map(|j| c[i * n + j] * q[j * n + k]).sum::<f64>() - values[k] * q[i * n + k]).powi(2))
                .sum();
            assert!(residual.sqrt() < 1e-11 * norm, "vector {k} of {n}: {}", residual.sqrt() / norm);
            for other in 0..=k {
                let dot: f64 = (0..n).map(|i| q[i * n + k] * q[i * n + other]).sum();
                assert!((dot - f64::from(u8::from(k == other))).abs() < 1e-11);
            }
        }
    }
}

#[test]
fn a_few_directions_are_found_without_the_rest() {
    // [rows, cols] large enough that only the largest directions are iterated for.
    for (rows, cols) in [(500, 220), (220, 500)] {
        let p: Vec<f32> = preconditioned(rows, cols).into_iter().map(|x| x as f32).collect();
        let few = truncated_svd(&p, rows, cols, 24, Threads::One).unwrap();
        let all = truncated_svd(&p, rows, cols, 220, Threads::One).unwrap();
        // The first 24 of all directions.
        let first = |factors: &[f32], n: usize| -> Vec<f32> {
            (0..n).flat_map(|i| factors[i * 220..i * 220 + 24].iter().copied()).collect()
        };
        let expected = multiply(&first(&all.0, rows), &first(&all.1, cols), rows, cols);
        let norm = distance(&p, &vec![0.0; rows * cols]);
        assert!(distance(&multiply(&few.0, &few.1, rows, cols), &expected) < 1e-6 * norm);
    }
}

#[test]
fn what_a_large_matrix_lacks_in_rank_is_no_obstacle() {
    // Whole numbers, so that a product leaves exact zeros and no rounding to go on from; and equal singular values.
    let (rows, cols) = (500, 220);
    let whole = |seed: u64, n: usize| -> Vec<f32> { random(seed, n).into_iter().map(|x| (3.0 * x).round()).collect() };
    let identity = |at: usize| if at / cols == at % cols { 1.0 } else { 0.0 };
    for rank in [0, 1, 3, 20] {
        let p = multiply(&whole(1, rows * rank), &whole(2, cols * rank), rows, cols);
        for (p, rows, cols) in [(p.clone(), rows, cols), (transpose(&p, rows, cols), cols, rows)] {
            let (left, right) = truncated_svd(&p, rows, cols, 24, Threads::One).unwrap();
            let norm = distance(&p, &vec![0.0; rows * cols]);
            assert!(distance(&multiply(&left, &right, rows, cols), &p) <= 1e-6 * norm, "rank {rank}");
        }
    }
    // One number alone; and numbers whose squares float32 does not hold.
    for (number, scale) in [(1, 1.0), (1, 1e30), (2000, 1e-25), (2000, 1e25)] {
        let p: Vec<f32> = (0..rows * cols).map(|at| if at < number { scale } else { 0.0 }).collect();
        let (left, right) = truncated_svd(&p, rows, cols, 24, Threads::One).unwrap();
        let relative = |x: Vec<f32>| -> Vec<f32> { x.into_iter().map(|x| x / scale).collect() };
        let error = distance(&relative(multiply(&left, &right, rows, cols)), &relative(p));
        assert!(error <= 1e-5, "{number} numbers of {scale:e} are {error:e} off");
    }
    let p: Vec<f32> = (0..rows * cols).map(identity).collect();
    let (left, right) = truncated_svd(&p, rows, cols, 24, Threads::One).unwrap();
    let error = distance(&multiply(&left, &right, rows, cols), &p);
    assert!((error - 196f64.sqrt()).abs() < 1e-5, "24 of 220 equal directions leave {error}");
}

#[test]
fn a_truncation_does_not_depend_on_the_size_of_the_numbers() {
    let (rows, cols, rank) = (96, 80, 4);
    let p: Vec<f32> = preconditioned(rows, cols).into_iter().map(|value| value as f32).collect();
    let rebuilt = |scale: f64| -> Vec<f64> {
        let scaled: Vec<f32> = p.iter().map(|&value| (f64::from(value) * scale) as f32).collect();
        let (left, right) = truncated_svd(&scaled, rows, cols, rank, Threads::One).unwrap();
        let right = transpose(&right, cols, rank);
        let entry = |i: usize, j: usize| -> f64 {
            (0..rank).map(|k| f64::from(left[i * rank + k]) * f64::from(right[k * cols + j])).sum::<f64>() / scale
        };
        (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect()
    };
    let one = rebuilt(1.0);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let size = norm(&mut one.iter().copied());
    assert!(size > 0.0);
    for scale in [1e-34, 1e-24, 1e-15, 1e-10, 1e-4, 1e4, 1e10, 1e30] {
        let other = rebuilt(scale);
        let off = norm(&mut one.iter().zip(&other).map(|(one, other)| one - other)) / size;
        assert!(off < 1e-5, "{scale}: {off}");
    }
}

#[test]
fn eigenvectors_are_orthonormal_whatever_the_null_space() {
    for (n, rank, scale) in [(24, 3, 1.0), (48, 5, 1e-14), (64, 9, 1e-20), (64, 30, 1e-30), (96, 2, 1e12), (32, 0, 1.0)]
    {
        let x = random(7, n * rank);
        let matrix: Vec<f64> = (0..n * n)
            .map(|place| {
                let (i, j) = (place / n, place % n);
                // Sums of squares as float32 keeps them.
                let sum: f64 = (0..rank).map(|k| f64::from(x[i * rank + k]) * f64::from(x[j * rank + k])).sum();
                f64::from((sum * scale) as f32)
            })
            .collect();
        let (values, vectors) = symmetric_eigen(&matrix, n, Threads::One).unwrap();
        let at = |i: usize, j: usize| vectors[i * n + j];
        let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        #[allow(clippy::needless_range_loop, reason = "two columns are walked")]
        for a in 0..n {
            for b in 0..n {
                let product: f64 = (0..n).map(|i| at(i, a) * at(i, b)).sum();
                assert!(
                    (product - if a == b { 1.0 } else { 0.0 }).abs() < 1e-10,
                    "{n} {rank} {scale}: {a} {b} {product}"
                );
            }
            let image = |i: usize| (0..n).map(|j| matrix[i * n + j] * at(j, a)).sum::<f64>();
            let residual = (0..n).map(|i| (image(i) - values[a] * at(i, a)).powi(2)).sum::<f64>().sqrt();
            assert!(residual <= 1e-9 * norm, "{n} {rank} {scale}: {residual} of {norm}");
        }
    }
}
