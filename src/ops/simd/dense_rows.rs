//! Dot products of few rows with f32, f16 or 8-bit weights, for vectors of any number of lanes: `x86::dense_rows` and
//! `arm::dense_rows` say what their instructions are.
//!
//! A weight vector is widened in a register and multiplied with every row of x while it is there: the weights are read
//! once, and nothing is written but the sums.

use crate::alloc::CACHE_LINE;
use crate::ops::simd::prefetch;

/// Fetches what a kernel will read soon, where it begins a cache line: it has read `read` bytes of a run that has come to
/// `at`, and takes `step` at a time.
#[inline(always)]
pub(super) fn fetch_ahead<T>(at: *const T, read: usize, step: usize) {
    /// How far ahead, in bytes.
    const AHEAD: usize = 8192;
    if read % CACHE_LINE < step {
        for line in 0..step.div_ceil(CACHE_LINE) {
            prefetch::into_first(at.cast::<i8>().wrapping_add(AHEAD + line * CACHE_LINE));
        }
    }
}

/// Calls `$some::<A, O>` for blocks of `A` rows of x, at most `$max_rows`. Several rows of x share
/// their vectors between two rows of w. A single row of x takes `$single` rows of w at a time: 1 is as fast as memory, 2 is
/// faster where weights are so narrow that loading x takes longer.
macro_rules! blocks {
    ($some:ident, $max_rows:literal, $single:literal, $x:ident, $w:ident, $d_in:ident, $y:ident) => {{
        let rows = $x.len() / $d_in;
        assert!($d_in > 0 && $x.len() == rows * $d_in, "shapes of a product");
        for r in (0..rows).step_by($max_rows) {
            let x = &$x[r * $d_in..rows.min(r + $max_rows) * $d_in];
            let y = &mut $y[r * ($w.len() / $d_in)..];
            match x.len() / $d_in {
                1 => $some::<1, $single>(x, $w, $d_in, y),
                2 => $some::<2, 2>(x, $w, $d_in, y),
                3 => $some::<3, 2>(x, $w, $d_in, y),
                4 => $some::<4, 2>(x, $w, $d_in, y),
                5 => $some::<5, 2>(x, $w, $d_in, y),
                6 => $some::<6, 2>(x, $w, $d_in, y),
                7 => $some::<7, 2>(x, $w, $d_in, y),
                _ => $some::<8, 2>(x, $w, $d_in, y),
            }
        }
    }};
}
pub(super) use blocks;

/// Defines a kernel for one vector width and one weight type: `A` rows of x with all rows of w, `O` at a time; the sum of
/// rows a and n goes to `y[a · outs + n]`. A row's products are added up in one vector, in the same order in every
/// batch; its lanes are added with those of other rows, as many at once as a vector has.
macro_rules! kernel {
    ($name:ident, $features:literal, $element:ty, $lanes:literal, $zero:path, $load:path, $load_x:path, $fma:path,
     $sums:path, $store:path, $widen:expr) => {
        #[target_feature(enable = $features)]
        fn $name<const A: usize, const O: usize>(x: &[f32], w: &[$element], d_in: usize, y: &mut [f32]) {
            assert!(x.len() == A * d_in, "shapes of a block");
            let (outs, whole) = (w.len() / d_in, d_in / $lanes * $lanes);
            let mut vectors = [[$zero(); $lanes]; A];
            for (from, w) in (0..outs).step_by($lanes).zip(w.chunks($lanes * d_in)) {
                let rows = w.len() / d_in;
                for n in (0..rows).step_by(O) {
                    // The bounds of the inner loops are constant, so that they unroll and the sums stay in registers.
                    let mut acc = [[$zero(); O]; A];
                    // The last row alone is multiplied O times.
                    let w: [_; O] = std::array::from_fn(|o| w[(n + o).min(rows - 1) * d_in..][..d_in].as_ptr());
                    for i in (0..whole).step_by($lanes) {
                        let step = O * $lanes * size_of::<$element>();
                        // Rows that are read at the same time lie one behind the other: fetched front to back they are one
                        // run of memory.
                        fetch_ahead(w[0].wrapping_add(i * O), i / $lanes * step, step);
                        // SAFETY: the whole vector lies inside the row.
                        let wide = w.map(|w| unsafe { $load(w.add(i)) });
                        for a in 0..A {
                            // SAFETY: the whole vector lies inside row a.
                            let x = unsafe { $load_x(x.as_ptr().add(a * d_in + i)) };
                            for o in 0..O {
                                acc[a][o] = $fma(x, wide[o], acc[a][o]);
                            }
                        }
                    }
                    for a in 0..A {
                        vectors[a][n..n + O].copy_from_slice(&acc[a]);
                    }
                }
                for (a, vectors) in vectors.iter().enumerate() {
                    let mut sums = [0.0; $lanes];
                    // SAFETY: the array has an element for each lane.
                    unsafe { $store(sums.as_mut_ptr(), $sums(vectors)) };
                    for (w, sum) in w.chunks_exact(d_in).zip(&mut sums).take(if whole < d_in { rows } else { 0 }) {
                        *sum += (whole..d_in).map(|i| x[a * d_in + i] * $widen(w[i])).sum::<f32>();
                    }
                    y[a * outs + from..][..rows].copy_from_slice(&sums[..rows]);
                }
            }
        }
    };
}
pub(super) use kernel;
