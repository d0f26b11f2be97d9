//! Random numbers that a seed fixes for all time: the ChaCha8 key stream is a standard, so the same seed draws the same
//! scene on every platform and with every version of the crate.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A source of random choices.
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// The choices of `seed`; each `stream` of a seed has its own.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&stream.to_le_bytes());
        Dice(ChaCha8Rng::from_seed(key))
    }

    /// A whole number from `0` to `n - 1`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// A whole number from `low` to `high`, both included.
    pub fn between(&mut self, low: i32, high: i32) -> i32 {
        low + self.below((high - low + 1) as usize) as i32
    }

    /// As [`Dice::between`], for coordinates.
    pub fn whole(&mut self, low: i32, high: i32) -> f64 {
        f64::from(self.between(low, high))
    }

    /// A number from `low` up to `high`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * f64::from(self.0.next_u32()) / 4_294_967_296.0
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform(0.0, 1.0) < p
    }

    /// One of `items`, which are not empty.
    pub fn choose<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// `n` different ones of `items`, in random order.
    pub fn sample<T: Copy>(&mut self, items: &[T], n: usize) -> Vec<T> {
        let mut left = items.to_vec();
        (0..n).map(|_| left.swap_remove(self.below(left.len()))).collect()
    }

    /// One of `items` that is not among `but`.
    pub fn other<T: Copy + PartialEq>(&mut self, items: &[T], but: &[T]) -> T {
        let rest: Vec<T> = items.iter().copied().filter(|i| !but.contains(i)).collect();
        self.choose(&rest)
    }
}
