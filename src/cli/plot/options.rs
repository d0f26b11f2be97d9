//! The options that ask for pictures of what a model did, and drawing what they ask for.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use ternion::apps::attention_rollout::AttentionRollout;
use ternion::engine::{Engine, Session};
use ternion::files::Image;
use ternion::unstable::models::ModelInfo;
use ternion::{Error, Result};

use crate::cli::plot::text::pieces;
use crate::cli::plot::{AttentionFigure, Font, PlotFile, RoutingFigure};

/// Pictures of what the model did.
#[derive(Debug, Args)]
#[command(next_help_heading = "Pictures of the answer")]
pub struct PlotArgs {
    /// Draw which experts were chosen, by layer and by token, into an .svg or .png file.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    routing: Option<PathBuf>,
    /// Draw where in the picture the model looked as it wrote WORD, or the attention of text token N, into an .svg or .png file.
    ///
    /// The last token of the prompt or the answer that holds the word counts. Text tokens are counted from 0, as --routing
    /// shows them; -1 is the last one. The attention of token N is that with which the model, having read it, chooses the
    /// next: where it looked as it wrote token N is the attention of N - 1. It can be given several times.
    #[arg(long, num_args = 2, value_names = ["WORD|N", "FILE"], allow_hyphen_values = true)]
    attention: Vec<OsString>,
}

/// Files to draw into, all of them checked.
#[derive(Debug)]
pub struct Plots {
    font: Font,
    routing: Option<PlotFile>,
    attention: Vec<(Which, PlotFile)>,
}

/// Whose attention is drawn.
#[derive(Debug, Clone, PartialEq)]
enum Which {
    /// That of the text token of this number, which counts from the end if it is negative.
    Number(i64),
    /// That with which the last token that holds this was chosen.
    Word(String),
}

impl PlotArgs {
    /// Refuses whatever is asked for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if anything is, with the option and `model`.
    pub fn reject(&self, model: &str) -> Result<()> {
        let asked = [("routing", self.routing.is_some()), ("attention", !self.attention.is_empty())];
        let refused = |(option, _): &(&str, bool)| {
            let object = format!("--{option} with {model}");
            Error::Unsupported { object, problem: "it is for a model that chats".into() }
        };
        asked.iter().find(|(_, asked)| *asked).map_or(Ok(()), |asked| Err(refused(asked)))
    }

    /// What is asked for; `images` are the files of the pictures that the model sees.
    ///
    /// # Errors
    /// [`Error::Argument`] for what is neither a number nor a word, for attention without a picture, for a file that is named twice or
    /// that is a picture of the question; those of [`PlotFile::new`].
    pub fn plots(&self, images: &[PathBuf]) -> Result<Plots> {
        if !self.attention.is_empty() && images.is_empty() {
            return Err(Error::argument("attention", "needs a picture to look at; give one with --image"));
        }
        let routing = self.routing.as_ref().map(|file| PlotFile::new("routing", file.as_os_str())).transpose()?;
        let mut attention = Vec::new();
        for pair in self.attention.chunks_exact(2) {
            attention.push((which(&pair[0])?, PlotFile::new("attention", &pair[1])?));
        }
        let plots = Plots { font: Font::built_in()?, routing, attention };
        let files: Vec<&PlotFile> = plots.routing.iter().chain(plots.attention.iter().map(|(_, f)| f)).collect();
        for (i, file) in files.iter().enumerate() {
            let refused = |problem: &str| Err(Error::argument(file.path().display(), problem));
            if files[..i].iter().any(|other| other.is(file.path())) {
                return refused("would be written twice; give each picture its own file");
            }
            if images.iter().any(|image| file.is(image)) {
                return refused("is a picture of the question and would be overwritten; give another file");
            }
        }
        Ok(plots)
    }
}

impl Plots {
    /// Whether there is anything to draw.
    pub fn any(&self) -> bool {
        self.routing.is_some() || !self.attention.is_empty()
    }

    /// Checks what the model must have.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for routing without experts, and attention to pictures without vision.
    pub fn check(&self, info: &ModelInfo) -> Result<()> {
        let lacks = |wanted: bool, option: &str, problem: &str| {
            let object = format!("--{option} with {}", info.family);
            if wanted { Err(Error::Unsupported { object, problem: problem.into() }) } else { Ok(()) }
        };
        lacks(self.routing.is_some() && info.experts.is_empty(), "routing", "the model has no experts")?;
        lacks(!self.attention.is_empty() && info.image.is_none(), "attention", "the model reads text only")
    }

    /// Draws a session in which the answer begins with text token `answer`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a token that there is not and without a tokenizer, [`Error::Io`] for a file that cannot be
    /// written, [`Error::DeviceLost`] if the device was lost.
    pub fn draw(&self, engine: &Engine, session: &mut Session, images: &[Image], answer: usize) -> Result<()> {
        let missing = || Error::argument("tokenizer", "there is none, and pictures name tokens by their text");
        let tokenizer = engine.tokenizer().ok_or_else(missing)?;
        let texts = pieces(tokenizer, session.tokens())?;
        if let Some(file) = &self.routing {
            let routing = session.routing()?;
            let figure = RoutingFigure::new(&self.font, &routing, engine.info(), &texts, answer);
            file.write(&self.font, &figure)?;
        }
        let mut rollout = AttentionRollout::new(engine);
        for (which, file) in &self.attention {
            let found = rollout.attention(session, which.place(&texts)?)?;
            file.write(&self.font, &AttentionFigure::new(&self.font, &found, images, &texts)?)?;
        }
        Ok(())
    }
}

/// A number, or a word.
fn which(text: &OsString) -> Result<Which> {
    let text = text.to_string_lossy();
    match text.parse() {
        Ok(number) => Ok(Which::Number(number)),
        Err(_) if text.chars().any(char::is_alphabetic) => Ok(Which::Word(text.into_owned())),
        Err(_) => {
            let problem = format!(
                "{text:?} is not a number; expected a word of the prompt or the answer, or the number of a text token: from 0 or, \
                 counted from the end, from -1"
            );
            Err(Error::argument("attention", problem))
        }
    }
}

impl Which {
    /// The token whose attention is meant, of tokens with these texts.
    fn place(&self, texts: &[String]) -> Result<usize> {
        match self {
            Which::Number(number) => place(*number, texts.len()),
            Which::Word(word) => before(word, texts),
        }
    }
}

/// The token in front of the last one that holds a word, whatever its case; of the first token, itself.
fn before(word: &str, texts: &[String]) -> Result<usize> {
    let wanted = word.to_lowercase();
    let found = texts.iter().rposition(|text| text.to_lowercase().contains(&wanted));
    let problem = || {
        let all: Vec<String> = texts.iter().enumerate().map(|(i, text)| format!("{i} {text:?}")).collect();
        format!("no token of prompt and answer holds {word:?}; they are {}", all.join(", "))
    };
    found.map(|at| at.saturating_sub(1)).ok_or_else(|| Error::argument("attention", problem()))
}

/// The token with this number of `n`, which counts from the end if it is negative.
fn place(number: i64, n: usize) -> Result<usize> {
    let from_start = if number < 0 { number + n as i64 } else { number };
    let found = usize::try_from(from_start).ok().filter(|&token| token < n);
    let problem = || {
        format!("there is no text token {number}; prompt and answer have 0 to {}, or -{n} to -1", n.saturating_sub(1))
    };
    found.ok_or_else(|| Error::argument("attention", problem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_what_was_chosen_last() {
        let texts = ["What", " is", " green", "?", " The", " Gre", "en", "."].map(str::to_owned);
        let at = |word: &str| which(&word.into()).unwrap().place(&texts);
        assert_eq!([at("green").unwrap(), at("GRE").unwrap(), at("what").unwrap(), at("-1").unwrap()], [1, 4, 0, 7]);
        let error = at("red").unwrap_err().to_string();
        assert!(error.contains("\"red\"") && error.contains("2 \" green\""), "{error}");
    }

    #[test]
    fn numbers_count_from_both_ends() {
        assert_eq!([0, 4, -1, -5].map(|n| place(n, 5).unwrap()), [0, 4, 4, 0]);
        for n in [5, -6, i64::MAX, i64::MIN] {
            let error = place(n, 5).unwrap_err().to_string();
            assert!(error.contains("0 to 4") && error.contains("-5 to -1"), "{error}");
        }
    }
}
