//! Generates text after a question about a picture, streaming it.
//!
//! `cargo run --release --example generate [-- MODEL IMAGE QUESTION [TOKENIZER]]`; without arguments, the demo model is asked about
//! one of its pictures.

use std::io::Write;

use ternion::engine::{Engine, GenerateOptions, Options};
use ternion::files::{Image, ModelFiles};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shapes/samples/spatial_scene_100000.png");
    let (files, image, question, tokenizer) = match args.as_slice() {
        [] => (ModelFiles::demo()?, picture, "What color is the circle?", None),
        [model, image, question, tokenizer @ ..] => {
            (model.into(), image.as_str(), question.as_str(), tokenizer.first())
        }
        _ => return Err("usage: generate [MODEL IMAGE QUESTION [TOKENIZER]]".into()),
    };
    let options = Options { tokenizer: tokenizer.map(Into::into), ..Options::default() };
    let engine = Engine::open(files, options)?;
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
