//! Ternion inside an application: one engine, shared by threads; each conversation a session; a stream dropped early
//! ends its generation.
//!
//! `cargo run --release --example embed_in_app -- MODEL [IMAGE] [TOKENIZER]`

use std::sync::Arc;
use std::thread;

use ternion::{Engine, GenerateOptions, Image, Options, Result};

/// What an application keeps for its whole life. The engine holds the weights once, however many threads ask.
struct App {
    engine: Engine,
    image: Option<Image>,
}

impl App {
    /// Answers in full. Blocks: call it from a thread that may wait.
    fn answer(&self, question: &str) -> Result<String> {
        let mut session = self.engine.session()?;
        if let Some(image) = &self.image {
            session.push_image(image)?;
        }
        session.push_question(question)?;
        let options = GenerateOptions { max_tokens: Some(24), ..GenerateOptions::default() };
        // A stream is an iterator of `Result<Token>`, so an answer is its collected text.
        session.generate(options)?.map(|token| token.map(|t| t.text)).collect()
    }

    /// Answers until `wanted` says no; then two more words in the same session, which still knows the rest.
    fn answer_while(&self, question: &str, mut wanted: impl FnMut(usize) -> bool) -> Result<String> {
        let mut session = self.engine.session()?;
        session.push_question(question)?;
        let mut text = String::new();
        let mut stream = session.generate(GenerateOptions::default())?;
        while let Some(token) = stream.next() {
            text += &token?.text;
            if !wanted(stream.stats().generated) {
                break;
            }
        }
        // Dropping the stream is all that cancelling takes: nothing runs on behind it.
        drop(stream);
        let options = GenerateOptions { max_tokens: Some(2), ..GenerateOptions::default() };
        for token in session.generate(options)? {
            text += &token?.text;
        }
        Ok(text)
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("usage: embed_in_app MODEL [IMAGE] [TOKENIZER]")?;
    let image = args.next().map(Image::open).transpose()?;
    let options = Options { sessions: 2, tokenizer: args.next().map(Into::into), ..Options::default() };
    let app = Arc::new(App { engine: Engine::open(model, options)?, image });

    // Both threads step the model together: their rows share a batch, and each gets what it would get alone.
    let other = app.clone();
    let worker = thread::spawn(move || other.answer("What is this?"));
    let cut = app.answer_while("Count for me.", |generated| generated < 8)?;
    let full = worker.join().map_err(|_| "the worker panicked")??;
    println!("in full: {full:?}\ncut:     {cut:?}");

    // A third session while two are open would be refused, with an error that says how to get more.
    let _first = app.engine.session()?;
    let _second = app.engine.session()?;
    if let Err(error) = app.engine.session() {
        println!("refused: {error}");
    }
    Ok(())
}
