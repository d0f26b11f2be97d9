//! Hashes (SHA-256) by which files, and models with equal weights, are recognised.

use sha2::{Digest, Sha256};

/// Bytes of a hash.
pub(crate) const HASH: usize = 32;

/// SHA-256.
pub(crate) fn hash(bytes: &[u8]) -> [u8; HASH] {
    Sha256::digest(bytes).into()
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes that [`hex`] wrote.
pub(crate) fn from_hex(text: &str) -> Option<[u8; HASH]> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let bytes: Vec<u8> = digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, d| byte << 4 | d)).collect();
    let whole = text.len() == 2 * HASH;
    bytes.try_into().ok().filter(|_| whole)
}

/// Words of a weight that are looked at.
const SAMPLED: usize = 64;

/// A hash of weights as a device gets them, by their names, their sizes and some of their words: cheap while they are loaded, and
/// enough to tell models, and forms of one model, apart.
#[derive(Debug, Default)]
pub(crate) struct SampledHash(Sha256);

impl SampledHash {
    /// Adds a weight; their order counts.
    pub fn add(&mut self, name: &str, words: &[u32]) {
        self.0.update(format!("{name}\n{}\n", words.len()));
        let step = words.len().div_ceil(SAMPLED).max(1);
        words.iter().step_by(step).for_each(|word| self.0.update(word.to_le_bytes()));
    }

    /// The hash, in hexadecimal digits.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_come_back_as_bytes() {
        let bytes = hash(b"abc");
        assert_eq!(hex(&bytes), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(from_hex(&hex(&bytes)), Some(bytes));
        for broken in ["", "ba", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66), &"é".repeat(32)] {
            assert_eq!(from_hex(broken), None, "{broken}");
        }
    }

    #[test]
    fn weights_of_other_names_sizes_and_words_have_other_hashes() {
        let of = |all: &[(&str, &[u32])]| {
            let mut hash = SampledHash::default();
            all.iter().for_each(|(name, words)| hash.add(name, words));
            hash.finish()
        };
        let (long, mut other) = (vec![7; 1000], vec![7; 1000]);
        other[16 * 20] = 8;
        let all: Vec<String> = [
            of(&[]),
            of(&[("a", &[])]),
            of(&[("a", &[1])]),
            of(&[("b", &[1])]),
            of(&[("a", &[1]), ("b", &[1])]),
            of(&[("b", &[1]), ("a", &[1])]),
            of(&[("a", &long)]),
            of(&[("a", &long[1..])]),
            of(&[("a", &other)]),
        ]
        .into();
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
        assert_eq!(all[6], of(&[("a", &long)]));
    }
}
