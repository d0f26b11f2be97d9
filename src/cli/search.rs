//! `ternion search`: pictures of folders, found by text or by picture.

use std::io::{self, Write};
use std::path::{self, Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::{Map, Value, json};
use ternion::apps::picture_index::PictureIndex;
use ternion::apps::picture_index::{Found, Update};
use ternion::{Error, Result};

use crate::cli::Outcome;
use crate::cli::args::{BitGenArgs, open_image, read_prompt};
use crate::cli::interrupts;
use crate::cli::messages::say;
use crate::cli::output::{Bar, table};
use crate::cli::terminal_text::{causes, message};
use crate::cli::text_warnings::warn_of_features;

/// Find pictures by a text or by another picture.
///
/// The pictures of folders are embedded once, into the file picture-index.safetensors in the index's folder. An
/// interrupted run continues when the folder is added again. A picture is embedded again only if its content has changed,
/// not if it was renamed; files that cannot be read are listed and left out. The index may lie in the pictures' own
/// folder, and can then be moved with them.
///
/// A BitGen compares a text by its first token alone. A warning names words that the tokenizer does not know, and words that
/// are ignored.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion search -m models/bitgen --index photos --add photos 'a dog on a beach'\n\
                        Example: ternion search -m models/bitgen --index photos --image dog.jpg -k 5 --json")]
pub struct Search {
    #[command(flatten)]
    model: BitGenArgs,
    /// The folder of the index; it is created if it does not exist.
    #[arg(long, value_name = "DIR", allow_hyphen_values = true)]
    index: PathBuf,
    /// Add the pictures of this folder and its subfolders, or update them; can be given several times.
    #[arg(long, value_name = "FOLDER", allow_hyphen_values = true)]
    add: Vec<PathBuf>,
    /// Scan all folders of the index again.
    #[arg(long)]
    update: bool,
    /// Drop this folder and its pictures from the index; can be given several times.
    #[arg(long, value_name = "FOLDER", allow_hyphen_values = true)]
    forget: Vec<PathBuf>,
    /// Embed all pictures of the index's folders again: for another model, or if the index is broken.
    #[arg(long)]
    rebuild: bool,
    /// Find pictures like this one.
    #[arg(short, long, value_name = "FILE", allow_hyphen_values = true, conflicts_with = "query")]
    image: Option<PathBuf>,
    /// Maximum number of results.
    #[arg(short, value_name = "K", default_value_t = 10)]
    k: usize,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Print the pictures' paths alone, a line each.
    #[arg(long, conflicts_with = "json")]
    paths: bool,
    /// Print the pictures' paths alone, each with a zero byte behind it, as `xargs -0` reads them.
    #[arg(short = '0', long, conflicts_with_all = ["json", "paths"])]
    null: bool,
    /// Find pictures that fit this text; `-` reads it from stdin, @FILE from a file.
    query: Option<String>,
}

impl Search {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of [`PictureIndex`], of the query's picture, and of writing.
    pub fn main(&self) -> Outcome {
        if self.k == 0 {
            return Err(Error::argument("k", "is 0, expected at least 1").into());
        }
        let changes = self.update || self.rebuild || !self.add.is_empty() || !self.forget.is_empty();
        if !changes && self.query.is_none() && self.image.is_none() {
            let problem = "there is none; give a text, a picture with --image, or folders with --add";
            return Err(Error::argument("query", problem).into());
        }
        let text = self.query.as_deref().map(read_prompt).transpose()?;
        let image = self.image.as_deref().map(open_image).transpose()?;
        let mut index = self.open()?;
        if let Some(text) = &text {
            warn_of_features(index.model(), std::slice::from_ref(text))?;
        }
        interrupts::watch()?;
        let update = self.change(&mut index).inspect_err(|_| {
            if interrupts::came() {
                say!("what was embedded so far is kept; --update continues");
            }
        })?;
        let found = match (&text, &image) {
            (Some(text), _) => Some(index.by_text(text, self.k)?),
            (None, Some(image)) => Some(index.by_image(image, self.k)?),
            (None, None) => None,
        };
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{:#}", self.as_json(&index, update.as_ref(), text.as_deref(), found.as_deref()))?;
        } else if let Some(found) = found.as_deref().filter(|_| self.paths || self.null) {
            let end: &[u8] = if self.null { b"\0" } else { b"\n" };
            for path in found.iter().map(|found| self.shown(&found.path)) {
                out.write_all(path.as_os_str().as_encoded_bytes())?;
                out.write_all(end)?;
            }
        } else if let Some(found) = found {
            let row = |(i, f): (usize, &Found)| {
                vec![(i + 1).to_string(), format!("{:.3}", f.cosine), self.shown(&f.path).display().to_string()]
            };
            let rows: Vec<Vec<String>> = found.iter().enumerate().map(row).collect();
            table(&mut out, &["", "cosine", "picture"], &rows)?;
        }
        Ok(())
    }

    /// The index, new where there is none and folders are added.
    fn open(&self) -> Result<PictureIndex> {
        let there = self.index.join(PictureIndex::FILE).exists();
        let model = Arc::new(self.model.open()?);
        match there {
            true if self.rebuild => match PictureIndex::rebuilt(&self.index, model.clone()) {
                Err(error @ (Error::Format { .. } | Error::Unsupported { .. })) if !self.add.is_empty() => {
                    let why = message(&error.to_string());
                    say!("its folders are unknown, so only those of --add are embedded: {why}");
                    PictureIndex::new(&self.index, model)
                }
                other => other,
            },
            false if !self.add.is_empty() => PictureIndex::new(&self.index, model),
            _ => PictureIndex::open(&self.index, model),
        }
    }

    /// Changes the index as asked, and reports on stderr what was done.
    fn change(&self, index: &mut PictureIndex) -> Result<Option<Update>> {
        for folder in &self.forget {
            index.forget(folder)?;
        }
        let bar = Bar::new("embedding");
        let mut all: Option<Update> = None;
        if !self.add.is_empty() {
            all = Some(index.add(&self.add, |p| bar.show(&p))?);
        }
        if self.update || self.rebuild {
            let rest = index.refresh(|p| bar.show(&p))?;
            all = Some(match all {
                // Both scan what was added: what the first has embedded is unchanged for the second.
                Some(first) => Update {
                    embedded: first.embedded + rest.embedded,
                    known: first.known + rest.known,
                    unchanged: rest.unchanged.saturating_sub(first.embedded + first.known),
                    removed: first.removed + rest.removed,
                    skipped: rest.skipped,
                },
                None => rest,
            });
        }
        bar.end();
        if let Some(update) = &all {
            for skipped in &update.skipped {
                say!("left out: {}", message(&causes(&skipped.error)));
            }
            let Update { embedded, known, unchanged, removed, skipped } = update;
            let (n, skipped) = (index.len(), skipped.len());
            say!(
                "{n} pictures: {embedded} embedded, {known} known, {unchanged} unchanged; {removed} removed, {skipped} left out"
            );
        }
        for folder in index.folders().iter().filter(|f| !f.complete) {
            let path = message(&self.shown(&folder.path).display().to_string());
            say!("{path} is embedded only in part; --update continues");
        }
        Ok(all)
    }

    /// A path of the index, written as that of the index was given.
    fn shown(&self, path: &Path) -> PathBuf {
        let home = path::absolute(&self.index);
        match home.ok().as_deref().and_then(|home| path.strip_prefix(home).ok()) {
            Some(inside) if inside.as_os_str().is_empty() => self.index.clone(),
            Some(inside) => self.index.join(inside),
            None => path.to_owned(),
        }
    }

    fn as_json(
        &self,
        index: &PictureIndex,
        update: Option<&Update>,
        text: Option<&str>,
        found: Option<&[Found]>,
    ) -> Value {
        let path = |path: &Path| self.shown(path).to_string_lossy().into_owned();
        let folders = index
            .folders()
            .into_iter()
            .map(|f| json!({ "path": path(&f.path), "pictures": f.pictures, "complete": f.complete }));
        let mut json = Map::from_iter([("folders".to_owned(), folders.collect::<Value>())]);
        if let Some(Update { embedded, known, unchanged, removed, skipped }) = update {
            let skipped = skipped.iter().map(|s| json!({ "path": path(&s.path), "error": causes(&s.error) }));
            let update = json!({
                "embedded": embedded, "known": known, "unchanged": unchanged, "removed": removed,
                "skipped": skipped.collect::<Value>(),
            });
            json.insert("update".into(), update);
        }
        if let Some(found) = found {
            let pictures = found.iter().map(|f| json!({ "path": path(&f.path), "cosine": f.cosine }));
            json.insert(
                "query".into(),
                match (text, &self.image) {
                    (Some(text), _) => json!({ "text": text }),
                    (None, image) => json!({ "image": image.as_ref().map(|image| image.to_string_lossy()) }),
                },
            );
            json.insert("pictures".into(), pictures.collect());
        }
        Value::Object(json)
    }
}
