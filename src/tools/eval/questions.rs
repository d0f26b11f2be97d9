//! Asking a model questions whose answers are known, and counting.

use std::ops::ControlFlow;
use std::path::Path;

use crate::engine::Engine;
use crate::engine::open::{Progress, required_tokenizer};
use crate::engine::options::GenerateOptions;
use crate::engine::session::Session;
use crate::error::Result;
use crate::files::Image;
use crate::tools::eval::data::{DataSet, Question, at};

/// How the questions of a family were answered.
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// Tokens of the right answers, their ends included.
    pub tokens: usize,
    /// What these tokens surprise the model by, each behind the question and the right answer so far: the sum of `−ln p`.
    pub nats: f64,
}

/// What the model answered, and how right it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// What the model answered, in the order of the questions, trimmed; none for a question that was not asked, since the
    /// callback broke before.
    pub answers: Vec<Option<String>>,
    /// The families in the order in which they first occur.
    pub families: Vec<Score>,
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

    /// The cross-entropy of the right answers, in nats per token.
    pub fn cross_entropy(&self) -> f64 {
        self.nats / self.tokens.max(1) as f64
    }

    /// The perplexity of the right answers: `exp` of the cross-entropy.
    pub fn perplexity(&self) -> f64 {
        self.cross_entropy().exp()
    }

    fn add(&mut self, other: &Score) {
        (self.n, self.correct) = (self.n + other.n, self.correct + other.correct);
        (self.tokens, self.nats) = (self.tokens + other.tokens, self.nats + other.nats);
        if let Some([places, chosen]) = other.own_expert {
            let sum = self.own_expert.get_or_insert([0, 0]);
            *sum = [sum[0] + places, sum[1] + chosen];
        }
    }
}

impl Evaluation {
    /// All families together; their own experts as far as they have some.
    pub fn all(&self) -> Score {
        let mut all = Score { family: "all".into(), ..Score::default() };
        self.families.iter().for_each(|f| all.add(f));
        all
    }
}

/// Asks every question of a data set by itself, the most likely token at each step, with at most `max_tokens` tokens an
/// answer. A picture is decoded and encoded once, however many questions are about it. A callback that breaks ends it with what
/// was answered before.
///
/// Behind the same question the right answer is read too, as text that the model might have generated: a space, the
/// answer, and the token that ends a text, each token from those in front of it.
///
/// # Errors
/// [`crate::Error::Argument`] without a tokenizer, [`crate::Error::ContextFull`] for a question or an answer that does not fit
/// in the context, those of [`Image::open`], and [`crate::Error::DeviceLost`] if the device was lost.
pub fn evaluate(
    engine: &Engine,
    data: &DataSet,
    max_tokens: usize,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Evaluation> {
    let (questions, experts) = (data.questions(), &engine.info().experts);
    let own = |q: &Question| experts.iter().position(|name| *name == q.family);
    let mut found = Evaluation { answers: vec![None; questions.len()], families: Vec::new() };
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
        let at_this = Progress { done, total: questions.len(), what: q.image.display().to_string() };
        if progress(at_this).is_break() {
            break;
        }
        let new = shown.replace(&q.image) != Some(&q.image);
        session.reset_text();
        if new {
            session.reset();
            session.push_image(&Image::open(&q.image)?)?;
        }
        let (answer, score) = ask(engine, &mut session, q, max_tokens, own(q)).map_err(|e| at(data.place(i), e))?;
        found.families.iter_mut().filter(|f| f.family == q.family).for_each(|f| f.add(&score));
        found.answers[i] = Some(answer);
    }
    Ok(found)
}

/// The answer to one question, trimmed, and how right it is; `own` is the family's expert.
fn ask(
    engine: &Engine,
    session: &mut Session,
    q: &Question,
    max_tokens: usize,
    own: Option<usize>,
) -> Result<(String, Score)> {
    session.push_question(&q.question)?;
    let asked = session.tokens().len();
    let options = GenerateOptions { max_tokens: Some(max_tokens.min(session.room())), ..GenerateOptions::default() };
    let pieces: Result<Vec<String>> = session.generate(options)?.map(|token| Ok(token?.text)).collect();
    let answer = pieces?.concat().trim().to_owned();
    let own_expert = own.map(|expert| places(session, expert)).transpose()?;
    session.truncate(asked);
    let right = right_answer(engine, &q.answer)?;
    let nats = -session.log_likelihood(&right)?.into_iter().map(f64::from).sum::<f64>();
    let correct = usize::from(is_right(&answer, &q.answer));
    Ok((answer, Score { n: 1, correct, own_expert, tokens: right.len(), nats, ..Score::default() }))
}

/// The tokens of a right answer, behind a question's: with a space in front, and the end behind.
fn right_answer(engine: &Engine, answer: &str) -> Result<Vec<u32>> {
    let mut tokens = match answer.trim() {
        "" => Vec::new(),
        text => required_tokenizer(engine.tokenizer())?.encode(&format!(" {text}"), false)?,
    };
    tokens.extend(engine.info().eos.first());
    Ok(tokens)
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
        let score = |family: &str, n, correct, own_expert| {
            let (tokens, nats) = (2 * n, n as f64 / 4.0);
            Score { family: family.into(), n, correct, own_expert, tokens, nats }
        };
        let families = vec![score("a", 3, 1, Some([30, 24])), score("b", 1, 1, None), score("c", 4, 0, Some([10, 0]))];
        let all = Evaluation { answers: Vec::new(), families }.all();
        assert_eq!(all, score("all", 8, 2, Some([40, 24])));
        assert_eq!((all.accuracy(), all.own_expert_share()), (0.25, Some(0.6)));
        assert_eq!((all.cross_entropy(), all.perplexity()), (0.125, 0.125f64.exp()));
        assert_eq!(score("b", 1, 1, None).own_expert_share(), None);
    }
}
