//! Data sets: folders of pictures with a list of questions or captions.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::{absolute, read_at_most, text};

/// Maximum number of bytes of a list.
const MAX_LIST_BYTES: u64 = 256 << 20;

/// Questions about the pictures of one folder, with their answers.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSet {
    list: PathBuf,
    questions: Vec<Question>,
}

/// A question about a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The picture's file.
    pub image: PathBuf,
    /// The kind of question; the expert of this name is the question's own.
    pub family: String,
    /// The question.
    pub question: String,
    /// The right answer.
    pub answer: String,
    /// The whole entry of the list, with fields that are not read.
    pub entry: Map<String, Value>,
}

/// Captions of the pictures of one folder.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionSet {
    list: PathBuf,
    pairs: Vec<Pair>,
}

/// A picture and a text that belongs to it. A picture may have several, a text several pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The picture's file.
    pub image: PathBuf,
    /// The text that finds it.
    pub caption: String,
    /// The decoder's text, if it is another one.
    pub description: Option<String>,
}

/// A list's name, and what it holds, for messages.
#[derive(Clone, Copy)]
struct Form {
    list: &'static str,
    entries: &'static str,
}

const QUESTIONS: Form = Form { list: DataSet::LIST, entries: r#"a list of {"image", "family", "question", "answer"}"# };
const CAPTIONS: Form = Form { list: CaptionSet::LIST, entries: r#"a list of {"image", "caption"}"# };

impl DataSet {
    /// The list of questions in a data set's folder.
    pub const LIST: &str = "questions.json";

    /// Reads `questions.json` in the folder `dir`: a list of objects with the texts `image` (a file in the folder),
    /// `family`, `question` and `answer`. Other fields are kept and not read.
    ///
    /// # Errors
    /// [`Error::Io`] for what cannot be read; [`Error::Format`] for a folder without a list and for a broken list, with
    /// line and column or the number of the entry, counted from 1.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let (list, questions) = read_list(dir.as_ref(), QUESTIONS, |entry| {
            let (image, family, question) = (entry.image()?, entry.filled("family")?, entry.filled("question")?);
            Ok(Question { image, family, question, answer: entry.text("answer")?, entry: entry.map.clone() })
        })?;
        Ok(DataSet { list, questions })
    }

    /// The questions in the order of the list, at least one.
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// Entry `i` in messages.
    pub(crate) fn place(&self, i: usize) -> String {
        place(&self.list, i)
    }
}

impl CaptionSet {
    /// The list of captions in a data set's folder.
    pub const LIST: &str = "captions.json";

    /// Reads `captions.json` in the folder `dir`: a list of objects with the texts `image` (a file in the folder),
    /// `caption`, and `description` if the decoder's text is another one. Other fields are ignored.
    ///
    /// # Errors
    /// As [`DataSet::open`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let (list, pairs) = read_list(dir.as_ref(), CAPTIONS, |entry| {
            let (image, caption) = (entry.image()?, entry.filled("caption")?);
            let description = entry.map.contains_key("description").then(|| entry.filled("description")).transpose()?;
            Ok(Pair { image, caption, description })
        })?;
        Ok(CaptionSet { list, pairs })
    }

    /// The pairs in the order of the list, at least one.
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Entry `i` in messages.
    pub(crate) fn place(&self, i: usize) -> String {
        place(&self.list, i)
    }
}

/// An entry of a list; what is wrong with it is the problem alone.
struct ListEntry<'a> {
    dir: &'a Path,
    map: &'a Map<String, Value>,
}

impl ListEntry<'_> {
    fn text(&self, key: &str) -> Result<String, String> {
        match self.map.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(format!("its {key:?} is {}, expected a string", kind(other))),
            None => Err(format!("has no {key:?}")),
        }
    }

    fn filled(&self, key: &str) -> Result<String, String> {
        let text = self.text(key)?;
        if text.trim().is_empty() { Err(format!("its {key:?} is empty")) } else { Ok(text) }
    }

    /// The picture, which lies in the folder.
    fn image(&self) -> Result<PathBuf, String> {
        let name = self.filled("image")?;
        let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
        if !Path::new(&name).components().all(inside) {
            return Err(format!("its \"image\" {name:?} leads out of the folder; pictures lie in it"));
        }
        let image = self.dir.join(&name);
        if image.is_file() { Ok(image) } else { Err(format!("its \"image\" {name:?} is not a file in the folder")) }
    }
}

/// Reads a folder's list: its path, and what `read` makes of each entry.
fn read_list<T>(dir: &Path, form: Form, read: impl Fn(&ListEntry) -> Result<T, String>) -> Result<(PathBuf, Vec<T>)> {
    let Form { list: name, entries: expected } = form;
    if !fs::metadata(dir).map_err(Error::io(dir))?.is_dir() {
        return Err(Error::format(dir.display(), format!("is not a folder; give one with {name} and its pictures")));
    }
    // The pictures are read later.
    let dir = &absolute(dir)?;
    let list = dir.join(name);
    let broken = |problem: String| Err(Error::format(list.display(), problem));
    if !list.is_file() {
        return Err(Error::format(dir.display(), format!("holds no {name}, {expected}")));
    }
    let json = read_at_most(&list, MAX_LIST_BYTES)?;
    if json.len() as u64 > MAX_LIST_BYTES {
        return broken(format!("has more than the {MAX_LIST_BYTES} bytes allowed"));
    }
    let entries = match text::json(&list.display().to_string(), &json, "JSON")? {
        Value::Array(entries) => entries,
        other => return broken(format!("is {}, expected {expected}", kind(&other))),
    };
    if entries.is_empty() {
        return broken(format!("is an empty list, expected {expected}"));
    }
    let mut all = Vec::with_capacity(entries.len());
    for (i, entry) in entries.iter().enumerate() {
        let found = match entry {
            Value::Object(map) => read(&ListEntry { dir, map }),
            other => Err(format!("is {}, expected an object as in {expected}", kind(other))),
        };
        all.push(found.map_err(|problem| Error::format(place(&list, i), problem))?);
    }
    Ok((list, all))
}

/// Entry `i` of a list in messages.
fn place(list: &Path, i: usize) -> String {
    format!("{}: entry {}", list.display(), i + 1)
}

/// What a JSON value is, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// What does not fit the model, with its place in the list.
pub(crate) fn at(place: String, error: Error) -> Error {
    match error {
        Error::Limit { what, wanted, available, advice } => {
            Error::Limit { what: format!("{place}: {what}"), wanted, available, advice }
        }
        Error::ContextFull { what, needed, available } => {
            Error::ContextFull { what: format!("{place}: {what}"), needed, available }
        }
        Error::Argument { name, problem } => Error::Argument { name: format!("{place}: {name}"), problem },
        other => other,
    }
}
