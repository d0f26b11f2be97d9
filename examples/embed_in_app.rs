//! Ternion inside an application: one engine, shared by threads; each conversation a session; a running answer kept in a
//! struct; a cancel handle that ends whatever runs; errors to act on.
//!
//! `cargo run --release --example embed_in_app [-- MODEL [IMAGE] [TOKENIZER]]`; without arguments, the demo model.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;

use ternion::engine::Progress;
use ternion::{Cancel, Engine, Error, GenerateOptions, Generation, Image, ModelFiles, Result, Session};

/// What an application keeps for its whole life. The engine holds the weights once, however many threads ask.
struct App {
    engine: Engine,
    image: Option<Image>,
}

/// A conversation on the screen: between answers there is a session, while one is written a generation that owns it.
enum Conversation {
    Waiting(Box<Session>),
    Answering(Box<Generation>),
}

impl App {
    /// Answers in full. Blocks: call it from a thread that may wait.
    fn answer(&self, question: &str) -> Result<String> {
        let mut session = self.engine.session()?;
        if let Some(image) = &self.image {
            session.push_image(image)?;
        }
        session.push_question(question)?;
        // A stream is an iterator of `Result<Token>`, so an answer is its collected text.
        session.generate(short())?.map(|token| token.map(|t| t.text)).collect()
    }
}

impl Conversation {
    /// Begins an answer.
    fn ask(self, question: &str) -> Result<Self> {
        let mut session = match self {
            Conversation::Waiting(session) => *session,
            Conversation::Answering(generation) => generation.finish(),
        };
        session.push_question(question)?;
        Ok(match session.into_generation(short()) {
            Ok(generation) => Conversation::Answering(Box::new(generation)),
            Err(refused) => {
                eprintln!("refused: {refused}");
                Conversation::Waiting(Box::new(refused.session))
            }
        })
    }

    /// The next piece of the answer; none at its end. An event loop calls it when it has time.
    fn next(&mut self) -> Option<Result<String>> {
        match self {
            Conversation::Waiting(_) => None,
            Conversation::Answering(generation) => generation.next().map(|token| token.map(|t| t.text)),
        }
    }
}

fn short() -> GenerateOptions {
    GenerateOptions { max_tokens: Some(24), ..GenerateOptions::default() }
}

/// A window would show a bar here, and break where its user closes it.
fn show(progress: Progress) -> ControlFlow<()> {
    if progress.done == progress.total {
        println!("loaded: {} weights", progress.total);
    }
    ControlFlow::Continue(())
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let files = args.next().map_or_else(ModelFiles::demo, |model| Ok(model.into()))?;
    let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shapes/samples/spatial_scene_100000.png");
    let image = Image::open(args.next().as_deref().unwrap_or(picture)).ok();
    let mut builder = Engine::builder().sessions(2).progress(show);
    if let Some(tokenizer) = args.next() {
        builder = builder.tokenizer(tokenizer);
    }
    let app = Arc::new(App { engine: builder.open(files)?, image });

    // Both threads step the model together: their rows share a batch, and each gets what it would get alone.
    let other = app.clone();
    let worker = thread::spawn(move || other.answer("What color is the circle?"));
    let cancel = Cancel::new();
    let mut session = app.engine.session()?;
    session.cancel_with(cancel.clone());
    let mut conversation = Conversation::Waiting(Box::new(session)).ask("Describe the image.")?;
    let mut text = String::new();
    while let Some(piece) = conversation.next() {
        text += &piece?;
        // A button's callback, on any thread; here it is pressed behind a few words.
        if text.len() > 8 {
            cancel.cancel();
        }
    }
    let full = worker.join().map_err(|_| "the worker panicked")??;
    println!("in full: {full:?}\ncut:     {text:?}");

    // A third session while two are open is refused, with an error that a program can act on.
    let _second = app.engine.session()?;
    match app.engine.session() {
        Err(Error::SessionsFull { open, max }) => println!("refused: {open} of {max} sessions are open"),
        other => println!("{:?}", other.map(|_| ())),
    }
    Ok(())
}
