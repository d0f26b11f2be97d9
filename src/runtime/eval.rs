//! Asking a model questions whose answers are known, and counting.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::engine::{Engine, Progress};
use super::options::GenerateOptions;
use super::session::Session;
use crate::error::{Error, Result};
use crate::files::{Image, read_at_most};

/// The list of questions in a data set's folder.
const LIST: &str = "questions.json";
/// What the list holds, for messages.
const FORM: &str = r#"a list of {"image", "family", "question", "answer"}"#;
/// Most bytes of the list.
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

/// How the questions of a family were answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Score {
    /// The family.
    pub family: String,
    /// Questions.
    pub n: usize,
    /// Those that were answered right (see [`is_right`]).
    pub correct: usize,
    /// Places of the model's text, and those of them where the family's own expert was chosen; none if no expert has
    /// the family's name. A place is a layer and a token of a prompt or an answer, image tokens left out.
    pub own_expert: Option<[usize; 2]>,
}

/// What the model answered, and how right it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// What the model answered, in the order of the questions, trimmed.
    pub answers: Vec<String>,
    /// The families in the order in which they first occur.
    pub families: Vec<Score>,
}

impl DataSet {
    /// Reads `questions.json` in the folder `dir`: a list of objects with the texts `image` (a file in the folder),
    /// `family`, `question` and `answer`. Other fields are kept and not read.
    ///
    /// # Errors
    /// [`Error::Io`] for what cannot be read; [`Error::Format`] for a folder without a list and for a broken list, with
    /// line and column or the number of the entry, counted from 1.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if !fs::metadata(dir).map_err(Error::io(dir))?.is_dir() {
            return Err(Error::format(dir.display(), format!("is no folder; give one with {LIST} and its pictures")));
        }
        let list = dir.join(LIST);
        let broken = |problem: String| Err(Error::format(list.display(), problem));
        if !list.is_file() {
            return Err(Error::format(dir.display(), format!("holds no {LIST}, {FORM}")));
        }
        let json = read_at_most(&list, MAX_LIST_BYTES)?;
        if json.len() as u64 > MAX_LIST_BYTES {
            return broken(format!("has more than {MAX_LIST_BYTES} bytes, the most allowed"));
        }
        let entries = match serde_json::from_slice(&json) {
            Ok(Value::Array(entries)) => entries,
            Ok(other) => return broken(format!("is {}, expected {FORM}", kind(&other))),
            Err(e) => return broken(format!("is no JSON: {e}")),
        };
        if entries.is_empty() {
            return broken(format!("is an empty list, expected {FORM}"));
        }
        let mut set = DataSet { list, questions: Vec::with_capacity(entries.len()) };
        for (i, entry) in entries.into_iter().enumerate() {
            let question = Question::read(dir, entry).map_err(|problem| Error::format(set.place(i), problem))?;
            set.questions.push(question);
        }
        Ok(set)
    }

    /// The questions in the order of the list, at least one.
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// Entry `i` in messages.
    fn place(&self, i: usize) -> String {
        format!("{}: entry {}", self.list.display(), i + 1)
    }
}

impl Question {
    /// Checks an entry of the list; the error is the problem alone.
    fn read(dir: &Path, entry: Value) -> Result<Self, String> {
        let Value::Object(entry) = entry else {
            return Err(format!("is {}, expected an object as in {FORM}", kind(&entry)));
        };
        let text = |key: &str| match entry.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(format!("its {key:?} is {}, expected a text", kind(other))),
            None => Err(format!("has no {key:?}")),
        };
        let filled = |key: &str| {
            let text = text(key)?;
            if text.trim().is_empty() { Err(format!("its {key:?} is empty")) } else { Ok(text) }
        };
        let name = filled("image")?;
        let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
        if !Path::new(&name).components().all(inside) {
            return Err(format!("its \"image\" {name:?} leads out of the folder; pictures lie in it"));
        }
        let image = dir.join(&name);
        if !image.is_file() {
            return Err(format!("its \"image\" {name:?} is no file in the folder"));
        }
        let (family, question, answer) = (filled("family")?, filled("question")?, text("answer")?);
        Ok(Question { image, family, question, answer, entry })
    }
}

/// What a JSON value is, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Whether an answer is the expected one, but for case and for space around it.
pub fn is_right(answer: &str, expected: &str) -> bool {
    answer.trim().to_lowercase() == expected.trim().to_lowercase()
}

impl Score {
    /// The share of questions that were answered right, in 0..=1.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.n.max(1) as f64
    }

    /// The share of the text's places where the family's own expert was chosen, in 0..=1.
    pub fn own_expert_share(&self) -> Option<f64> {
        self.own_expert.map(|[places, chosen]| chosen as f64 / places.max(1) as f64)
    }

    fn add(&mut self, n: usize, correct: usize, own_expert: Option<[usize; 2]>) {
        (self.n, self.correct) = (self.n + n, self.correct + correct);
        if let Some([places, chosen]) = own_expert {
            let sum = self.own_expert.get_or_insert([0, 0]);
            *sum = [sum[0] + places, sum[1] + chosen];
        }
    }
}

impl Evaluation {
    /// All families together; their own experts as far as they have some.
    pub fn all(&self) -> Score {
        let mut all = Score { family: "all".into(), ..Score::default() };
        self.families.iter().for_each(|f| all.add(f.n, f.correct, f.own_expert));
        all
    }
}

/// Asks every question of a data set by itself, the most likely token at each step, with at most `max_tokens` tokens an
/// answer. A picture is decoded and encoded once, however many questions are about it.
///
/// # Errors
/// [`Error::Argument`] without a tokenizer, [`Error::Limit`] for a question that does not fit in the context, those of
/// [`Image::open`], and [`Error::Device`] if the device was lost.
pub fn evaluate(
    engine: &Engine,
    data: &DataSet,
    max_tokens: usize,
    mut progress: impl FnMut(Progress),
) -> Result<Evaluation> {
    let (questions, experts) = (data.questions(), &engine.info().experts);
    let mut found = Evaluation { answers: vec![String::new(); questions.len()], families: Vec::new() };
    for q in questions {
        if !found.families.iter().any(|f| f.family == q.family) {
            found.families.push(Score { family: q.family.clone(), ..Score::default() });
        }
    }
    let mut order: Vec<(usize, &Question)> = questions.iter().enumerate().collect();
    order.sort_by_key(|(_, q)| &q.image);
    let mut session = engine.session()?;
    let mut shown: Option<&Path> = None;
    for (done, (i, q)) in order.into_iter().enumerate() {
        progress(Progress { done, total: questions.len(), what: q.image.display().to_string() });
        let new = shown.replace(&q.image) != Some(&q.image);
        session.reset(new);
        if new {
            session.push_image(&Image::open(&q.image)?)?;
        }
        let answer = ask(&mut session, &q.question, max_tokens).map_err(|e| at(data.place(i), e))?;
        let own = experts.iter().position(|name| *name == q.family);
        let own = own.map(|expert| places(&mut session, expert)).transpose()?;
        let correct = usize::from(is_right(&answer, &q.answer));
        found.families.iter_mut().filter(|f| f.family == q.family).for_each(|f| f.add(1, correct, own));
        found.answers[i] = answer;
    }
    Ok(found)
}

/// The answer to one question, trimmed.
fn ask(session: &mut Session, question: &str, max_tokens: usize) -> Result<String> {
    session.push_question(question)?;
    let options = GenerateOptions { max_tokens: Some(max_tokens.min(session.room())), ..GenerateOptions::default() };
    let pieces: Result<Vec<String>> = session.generate(options)?.map(|token| Ok(token?.text)).collect();
    Ok(pieces?.concat().trim().to_owned())
}

/// Places of a session's text, and those of them where `expert` is among the chosen.
fn places(session: &mut Session, expert: usize) -> Result<[usize; 2]> {
    let routing = session.routing()?;
    let (mut places, mut chosen) = (0, 0);
    for layer in 0..routing.layers() {
        for row in routing.image_rows..routing.rows() {
            places += 1;
            chosen += usize::from(routing.chosen(layer, row).contains(&(expert as u32)));
        }
    }
    Ok([places, chosen])
}

/// A question that does not fit, with its place in the list.
fn at(place: String, error: Error) -> Error {
    match error {
        Error::Limit { what, wanted, available, advice } => {
            Error::Limit { what: format!("{place}: {what}"), wanted, available, advice }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_outer_space_do_not_matter() {
        assert!(is_right(" Red\n", "red") && is_right("ÄRGER", "ärger") && is_right("", " "));
        assert!(!is_right("dark red", "red") && !is_right("1 0", "10"));
    }

    #[test]
    fn scores_add_up_with_and_without_an_expert() {
        let score = |family: &str, n, correct, own_expert| Score { family: family.into(), n, correct, own_expert };
        let families = vec![score("a", 3, 1, Some([30, 24])), score("b", 1, 1, None), score("c", 4, 0, Some([10, 0]))];
        let all = Evaluation { answers: Vec::new(), families }.all();
        assert_eq!(all, score("all", 8, 2, Some([40, 24])));
        assert_eq!((all.accuracy(), all.own_expert_share()), (0.25, Some(0.6)));
        assert_eq!(score("b", 1, 1, None).own_expert_share(), None);
    }
}
