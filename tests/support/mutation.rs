//! Changing bytes at random, with a fixed seed, and noticing panics.
#![allow(dead_code)] // Each test uses a part.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Mutations a form, unless `TERNION_MUTATIONS` says another number.
const CASES: usize = 40;
/// Bytes at both ends of a file that half of the changes are made in: headers and directories lie there.
const ENDS: usize = 3000;
/// Numbers that a number in a text becomes.
const EXTREMES: [&str; 14] = [
    "0",
    "-1",
    "1",
    "7",
    "1e30",
    "0.5",
    "65536",
    "1048577",
    "4294967296",
    "18446744073709551615",
    "NaN",
    "null",
    "[]",
    "\"x\"",
];

/// How many mutations are made of each form.
pub fn cases() -> usize {
    std::env::var("TERNION_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES)
}

pub struct Random(u64);

impl Random {
    pub fn new(seed: usize) -> Self {
        Random(0x9e37_79b9_7f4a_7c15 ^ (seed as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95))
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % n.max(1)
    }

    fn place(&mut self, length: usize) -> usize {
        match self.below(4) {
            0 => self.below(length.min(ENDS)),
            1 => length - 1 - self.below(length.min(ENDS)),
            2 => self.below(length.min(64)),
            _ => self.below(length),
        }
    }
}

/// `bytes` with one to three changes.
pub fn mutated(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut all = bytes.to_vec();
    for _ in 0..1 + random.below(3) {
        if all.is_empty() {
            break;
        }
        let at = random.place(all.len());
        let span = (1 + random.below(16)).min(all.len() - at);
        match random.below(10) {
            0 => all.truncate(at),
            1 => drop(all.drain(at..at + span)),
            2 => {
                let copy = all[at..at + span].to_vec();
                all.splice(at..at, copy);
            }
            3 => {
                let value = [0, 0xff, 0x7f, 0x80][random.below(4)];
                all[at..at + span].fill(value);
            }
            4 => {
                let other = random.place(all.len());
                let span = span.min(all.len() - other);
                let to = at.min(all.len() - span);
                all.copy_within(other..other + span, to);
            }
            5..=7 => number(&mut all, at, EXTREMES[random.below(EXTREMES.len())]),
            _ => all[at] ^= 1 << random.below(8),
        }
    }
    all
}

/// Puts `to` in the place of the first number in text behind `at`, if there is one.
fn number(all: &mut Vec<u8>, at: usize, to: &str) {
    let Some(start) = all[at..].iter().take(400).position(u8::is_ascii_digit).map(|i| at + i) else { return };
    let length = all[start..].iter().take_while(|b| b.is_ascii_digit()).count();
    all.splice(start..start + length, to.bytes());
}

/// Makes each mutation of `bytes` and hands it to `attempt`, which may fail in any way but a panic.
pub fn survives(form: &str, bytes: &[u8], mut attempt: impl FnMut(usize, &[u8])) {
    let mut panics = Vec::new();
    let from = std::env::var("TERNION_MUTATIONS_FROM").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    for case in from..from + cases() {
        let changed = mutated(bytes, &mut Random::new(case));
        if catch_unwind(AssertUnwindSafe(|| attempt(case, &changed))).is_err() {
            panics.push(case);
        }
    }
    assert!(panics.is_empty(), "{form}: the mutations {panics:?} make it panic");
}
