//! Draws a new picture of the kind that the demo model is trained on, and prints what can be asked about it.
//!
//! `cargo run --release --example draw_scene -- --seed 7 scene.png`
//!
//! `cargo run --release --example draw_scene -- --count 20 --out scenes` writes 20 scenes of each family, and
//! `questions.json` with a question for each: an exam for `ternion eval --data scenes`.
//!
//! The scenes follow the same rules as those of `examples/shapes/shapes.py`, with other random numbers.

mod canvas;
mod dice;
mod letters;
mod objects;
mod scene;
mod signs;
#[cfg(test)]
mod tests;
mod world;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use image::{ImageFormat, RgbImage};
use serde_json::json;
use thiserror::Error;

use scene::{Family, Scene};

#[derive(Parser)]
#[command(about = "Draws scenes for the demo model, with questions and answers")]
struct Args {
    /// The PNG file to write.
    #[arg(value_name = "PNG", required_unless_present = "out", conflicts_with = "out")]
    picture: Option<PathBuf>,
    /// Which scene: the same seed draws the same picture on every machine.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The scene's family; default: the seed's remainder by eight.
    #[arg(long, value_name = "NAME")]
    family: Option<Family>,
    /// With --out: how many scenes of each family, with this and the following seeds.
    #[arg(long, value_name = "N", requires = "out", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Folder to write many scenes to, with their questions.
    #[arg(long, value_name = "DIR", requires = "count")]
    out: Option<PathBuf>,
}

/// Why nothing, or not all, was drawn.
#[derive(Debug, Error)]
enum Failure {
    #[error("the built-in font cannot draw the letter {0:?}")]
    Letter(char),
    #[error("{}: the picture is a PNG; name a file that ends in .png", .0.display())]
    Name(PathBuf),
    #[error("{}: cannot write the picture: {source}; name a file in a folder that can be written to", path.display())]
    Picture { path: PathBuf, source: image::ImageError },
    #[error("{}: {source}; name a folder that can be written to", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("stdout: {0}")]
    Output(#[from] io::Error),
}

impl From<char> for Failure {
    fn from(letter: char) -> Self {
        Failure::Letter(letter)
    }
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        // `--help` comes here too, and is no error.
        Err(e) if !e.use_stderr() => e.exit(),
        Err(e) => return refuse(e.to_string().split("\n\n").next().unwrap_or_default()),
    };
    let outcome = match (&args.out, &args.picture) {
        (Some(folder), _) => many(&args, folder),
        (None, Some(path)) => one(&args, path),
        (None, None) => return refuse("error: name the PNG file to write"),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever closed the pipe has read enough.
        Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => refuse(&format!("error: {e}")),
    }
}

/// Ends with an error, on one line.
fn refuse(message: &str) -> ExitCode {
    eprintln!("{}", message.lines().map(str::trim).collect::<Vec<_>>().join(" "));
    ExitCode::from(2)
}

fn save(picture: &RgbImage, path: &Path) -> Result<(), Failure> {
    let failed = |source| Failure::Picture { path: path.to_owned(), source };
    picture.save_with_format(path, ImageFormat::Png).map_err(failed)
}

/// A path, as a shell takes it.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    if path.contains(char::is_whitespace) { format!("\"{path}\"") } else { path }
}

/// Draws one scene, and prints what can be asked about it.
fn one(args: &Args, path: &Path) -> Result<(), Failure> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
        return Err(Failure::Name(path.to_owned()));
    }
    let all = Family::value_variants();
    let family = args.family.unwrap_or(all[(args.seed % all.len() as u64) as usize]);
    let scene = Scene::draw(family, args.seed)?;
    save(&scene.picture, path)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}", family.name())?;
    let width = scene.questions.iter().map(|q| q.text.len()).max().unwrap_or(0);
    for question in &scene.questions {
        writeln!(out, "  {:width$}  {}", question.text, question.answer)?;
    }
    writeln!(out, "ternion run --image {} -p \"{}\"", quoted(path), scene.questions[scene.picked].text)?;
    Ok(())
}

/// Draws scenes of each family into a folder, with `questions.json`: one question a scene.
fn many(args: &Args, folder: &Path) -> Result<(), Failure> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::Folder { path, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let families = args.family.map_or_else(|| Family::value_variants().to_vec(), |f| vec![f]);
    let mut exam = Vec::new();
    for family in families {
        for i in 0..args.count.unwrap_or(1) {
            let seed = args.seed.wrapping_add(u64::from(i));
            let scene = Scene::draw(family, seed)?;
            let name = format!("{}_{seed}.png", family.name());
            save(&scene.picture, &folder.join(&name))?;
            let question = &scene.questions[scene.picked];
            exam.push(json!({
                "image": name, "family": family.name(), "question": question.text, "answer": question.answer,
            }));
        }
    }
    let path = folder.join("questions.json");
    fs::write(&path, format!("{:#}\n", json!(exam))).map_err(failed(&path))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{} scenes, with a question each", exam.len())?;
    writeln!(out, "ternion eval --data {}", quoted(folder))?;
    Ok(())
}
