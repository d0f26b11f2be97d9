//! How byte-level vocabularies of GGUF files split a text into words before they merge: the values of
//! `tokenizer.ggml.pre`, and what llama.cpp does for each.

/// A way to split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PreTokenizer {
    /// Regular expressions, one after the other: what matches is a word, and so is what lies between.
    pub splits: &'static [&'static str],
    /// Whether a word that is a token is that token, whatever the merges.
    pub ignore_merges: bool,
    /// Whether a text begins with the token for its beginning, where the file does not say.
    pub adds_bos: bool,
}

/// Contractions of English, in either case.
macro_rules! contractions {
    () => {
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|"
    };
}
/// Lines and other white space; the last space in front of a word belongs to the word.
macro_rules! white_space {
    () => {
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}
/// GPT-2's words.
macro_rules! gpt2_words {
    () => {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    };
}

/// Llama 3's: numbers in groups of up to three digits.
pub(crate) const LLAMA3: PreTokenizer = PreTokenizer {
    splits: &[concat!(
        contractions!(),
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
        white_space!()
    )],
    ignore_merges: true,
    adds_bos: true,
};

/// Qwen 2's: each digit by itself.
const QWEN2: PreTokenizer = PreTokenizer {
    splits: &[concat!(contractions!(), r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|", white_space!())],
    ignore_merges: false,
    adds_bos: false,
};

/// Qwen 3.5's: marks belong to the letters that they stand on.
const QWEN35: PreTokenizer = PreTokenizer {
    splits: &[concat!(
        contractions!(),
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|",
        white_space!()
    )],
    ..QWEN2
};

/// GPT-2's.
const GPT2: PreTokenizer = PreTokenizer { splits: &[gpt2_words!()], ignore_merges: false, adds_bos: false };

/// What llama.cpp does where a file says nothing: punctuation, then GPT-2's words, then numbers, by three digits.
pub(crate) const DEFAULT: PreTokenizer =
    PreTokenizer { splits: &[r"[\p{P}\$\+<=>\^~\|]+", gpt2_words!(), r"\p{N}+", "[0-9][0-9][0-9]"], ..GPT2 };

/// The vocabulary of Llama 3. Microsoft's converter, which writes BitNet b1.58 2B-4T, leaves the name out.
const LLAMA3_VOCAB: usize = 128_256;

impl PreTokenizer {
    /// The one of a name; none for a name that is not known.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            // Falcon-E's own expression was not published; Llama 3's gives sensible text and perplexities.
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "falcon_e" | "pixtral" => LLAMA3,
            "qwen2" | "deepseek-r1-qwen" => QWEN2,
            "qwen35" => QWEN35,
            "gpt-2" | "gpt2" | "phi-2" => GPT2,
            "default" => DEFAULT,
            _ => return None,
        })
    }

    /// The one of a file without a name, for a vocabulary of `tokens`; none where it can only be guessed.
    pub(crate) fn unnamed(tokens: usize) -> Option<Self> {
        (tokens == LLAMA3_VOCAB).then_some(LLAMA3)
    }
}
