//! Warnings about texts that a model reads only in part.

use ternion::Result;
use ternion::apps::bitgen::BitGen;
use ternion::files::Tokenizer;

use crate::cli::messages::say;

/// Maximum number of warnings of a command; of the others only the number is printed.
const MAX_SHOWN: usize = 5;

/// Warns of texts whose features say less than they do: a BitGen makes them of the first token alone, which may be unknown.
///
/// # Errors
/// Those of [`BitGen::feature_text`].
pub fn warn_of_features(model: &BitGen, texts: &[String]) -> Result<()> {
    let mut warnings = Vec::new();
    for text in texts {
        let found = model.feature_text(text)?;
        let (read, ignored) = (found.read, found.ignored);
        if found.unknown {
            let words = unknown_words(model.tokenizer(), text)?;
            warnings.push(format!(
                "{text:?}: the tokenizer does not know {words}; a BitGen compares a text by its first token alone, and \
                 that is unknown here: the numbers say nothing about this text"
            ));
        } else if read.is_empty() {
            warnings.push(format!(
                "{text:?}: the tokenizer begins every text with the same token, and a BitGen compares a text by its first \
                 token alone: the numbers are the same for every text"
            ));
        } else if !ignored.is_empty() {
            warnings.push(format!(
                "{text:?}: only {read:?} is compared, {ignored:?} does not count: a BitGen compares a text by its first \
                 token alone"
            ));
        }
    }
    warnings.iter().take(MAX_SHOWN).for_each(|warning| warn(warning));
    if warnings.len() > MAX_SHOWN {
        warn(&format!("the same goes for {} more texts", warnings.len() - MAX_SHOWN));
    }
    Ok(())
}

/// Warns of words of a prompt that the tokenizer does not know.
///
/// # Errors
/// Those of [`Tokenizer::unknown_words`].
pub fn warn_of_words(tokenizer: Option<&Tokenizer>, text: &str) -> Result<()> {
    let words = unknown_words(tokenizer, text)?;
    if !words.is_empty() {
        warn(&format!("the tokenizer does not know {words}: the model reads one and the same token for each of them"));
    }
    Ok(())
}

/// The unknown words of a text, quoted, in a row.
fn unknown_words(tokenizer: Option<&Tokenizer>, text: &str) -> Result<String> {
    let words = tokenizer.map(|tokenizer| tokenizer.unknown_words(text)).transpose()?.unwrap_or_default();
    let quoted: Vec<String> = words.iter().take(MAX_SHOWN).map(|word| format!("{word:?}")).collect();
    let more = if words.len() > MAX_SHOWN { format!(" and {} more", words.len() - MAX_SHOWN) } else { String::new() };
    Ok(quoted.join(", ") + &more)
}

fn warn(text: &str) {
    say!("warning: {text}");
}
