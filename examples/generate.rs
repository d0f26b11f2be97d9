//! Generates text after a question about a picture, streaming it.
//!
//! `cargo run --release --example generate -- MODEL IMAGE QUESTION [TOKENIZER]`

use std::io::Write;

use ternion::engine::{Engine, GenerateOptions, Options};
use ternion::files::Image;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, image, question, tokenizer @ ..] = args.as_slice() else {
        return Err("usage: generate MODEL IMAGE QUESTION [TOKENIZER]".into());
    };
    let options = Options { tokenizer: tokenizer.first().map(Into::into), ..Options::default() };
    let engine = Engine::open(model, options)?;
    eprintln!("{}: {}", engine.report().device, engine.report().why);
    let mut session = engine.session()?;
    session.push_image(&Image::open(image)?)?;
    session.push_question(question)?;
    for token in session.generate(GenerateOptions::default())? {
        print!("{}", token?.text);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
