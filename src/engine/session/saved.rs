//! Sessions that fork, and sessions as files: a safetensors file with `session`, bytes of JSON that say what was said, the
//! pictures and their vectors, and the rows of each state of the KV cache. Nothing in the file is trusted.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Forgotten, Session};
use crate::engine::Engine;
use crate::engine::conversation::Conversation;
use crate::engine::resident::Resident;
use crate::error::{Error, Result};
use crate::files::{Checkpoint, Image, NewTensor, StorageDType, write_tensors};

/// The metadata entry of a saved session: its version.
const KEY: &str = "ternion.session";
const VERSION: &str = "1";
const SESSION: &str = "session";
const PICTURES: &str = "pictures";
const VECTORS: &str = "image";
/// What the names of states begin with.
const STATE: &str = "state.";

/// The JSON of the tensor `session`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    /// What tells the model's weights from others.
    model: String,
    /// The form of keys and values; those of another form are made again.
    cache: String,
    /// Rows of the cache that hold tokens.
    cached: usize,
    pictures: usize,
    tokens: Vec<u32>,
    row_tokens: Vec<u32>,
    forgotten_at: usize,
    forgotten: Vec<u32>,
    answer_at: Option<usize>,
    conversation: Conversation,
}

/// What a file holds, checked against a model.
struct Loaded {
    json: Json,
    vectors: Vec<f32>,
    pictures: Vec<Arc<Image>>,
}

impl Session {
    /// A second session that goes on from here by itself: it has the same pictures, text and messages, and its own rows of
    /// the KV cache, which are copied, so that nothing runs again. It is cancelled by a handle of its own.
    ///
    /// # Errors
    /// [`Error::SessionsFull`]; [`Error::OutOfMemory`] if the device has no memory for its rows; those of the device.
    pub fn fork(&self) -> Result<Session> {
        let mut other = self.again_on(&self.engine)?;
        let rows = self.cached_rows()?;
        if !rows.is_empty() {
            let rows: Vec<_> = rows.into_iter().map(|(name, words)| (name, Cow::Owned(words))).collect();
            self.engine.write_rows(other.state.slot(), self.cached, &rows)?;
            other.cached = self.cached;
        }
        Ok(other)
    }

    /// A session of another engine with the same model, which goes on from here: as [`Session::fork`], but for the KV cache, whose
    /// rows run again with the next step. Where this engine's device was lost, [`Engine::reopen`] gives the other.
    ///
    /// # Errors
    /// [`Error::Argument`] for an engine of another model, or with other options of precision; [`Error::SessionsFull`];
    /// [`Error::ContextFull`] for a context that is too short.
    pub fn on(&self, engine: &Engine) -> Result<Session> {
        let engine = engine.resident();
        if engine.fingerprint != self.engine.fingerprint {
            let problem = "has another model than the session, or other options of precision";
            return Err(Error::argument("engine", problem));
        }
        let (needed, available) = (self.len() as u64, engine.states.context() as u64);
        if needed > available {
            return Err(Error::ContextFull { what: "the session".into(), needed, available });
        }
        self.again_on(engine)
    }

    /// A session of an engine with what this one holds, but its rows of the KV cache.
    fn again_on(&self, engine: &Arc<Resident>) -> Result<Session> {
        let mut other = Session::new(engine.clone())?;
        other.image = self.image.clone();
        (other.image_rows, other.image_time) = (self.image_rows, self.image_time);
        (other.pictures, other.tokens) = (self.pictures.clone(), self.tokens.clone());
        other.forgotten = Forgotten { at: self.forgotten.at, tokens: self.forgotten.tokens.clone() };
        (other.shift, other.row_tokens) = (self.shift, self.row_tokens.clone());
        (other.conversation, other.answer_at) = (self.conversation.clone(), self.answer_at);
        Ok(other)
    }

    /// Writes the session to a file, which [`Session::load`] reads: pictures, text, messages and its rows of the KV cache, so
    /// that nothing runs again. The whole new file, or the old one stays; only a saved session is replaced.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Argument`] for a file that is there and is no saved session; those of the device.
    pub fn save(&self, file: impl AsRef<Path>) -> Result<()> {
        check_target(file.as_ref())?;
        let rows = self.cached_rows()?;
        let json = Json {
            model: self.engine.fingerprint.clone(),
            cache: self.cache_form(),
            cached: self.cached,
            pictures: self.pictures.len(),
            tokens: self.tokens.clone(),
            row_tokens: self.row_tokens.clone(),
            forgotten_at: self.forgotten.at,
            forgotten: self.forgotten.tokens.clone(),
            answer_at: self.answer_at,
            conversation: self.conversation.clone(),
        };
        let file = file.as_ref();
        let json = serde_json::to_vec(&json).map_err(|e| Error::format(file.display(), e))?;
        let names: Vec<String> = rows.iter().map(|(name, _)| format!("{STATE}{name}")).collect();
        let sizes: Vec<[usize; 1]> = rows.iter().map(|(_, words)| [words.len()]).collect();
        let states = names.iter().zip(&sizes).zip(&rows).map(|((name, shape), (_, words))| {
            (&name[..], NewTensor { stored: StorageDType::U32, shape, bytes: bytemuck::cast_slice(words) })
        });
        let (pixels, vectors) = (self.pixels(), bytemuck::cast_slice(&self.image));
        let shapes = [[json.len()], [pixels.len()], [self.image.len()]];
        let parts = [
            (SESSION, NewTensor { stored: StorageDType::U8, shape: &shapes[0], bytes: &json }),
            (PICTURES, NewTensor { stored: StorageDType::U8, shape: &shapes[1], bytes: &pixels }),
            (VECTORS, NewTensor { stored: StorageDType::F32, shape: &shapes[2], bytes: vectors }),
        ];
        write_tensors(file, parts.into_iter().chain(states), &[(KEY, VERSION.to_owned())])
    }

    /// Becomes the session that [`Session::save`] wrote, of the same model with the same options of precision; with an
    /// error it stays as it was. Where the cache has another form ([`crate::engine::KvPrecision`]), all runs again with
    /// the next step. How the session thinks, shifts and is cancelled stays as it is.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for a file that is broken, or of another model; [`Error::ContextFull`] for one that does
    /// not fit; [`Error::OutOfMemory`] if the device has no memory for its rows.
    pub fn load(&mut self, file: impl AsRef<Path>) -> Result<()> {
        let file = file.as_ref();
        let checkpoint = Checkpoint::open(file)?;
        let Loaded { mut json, vectors, pictures } = self.read(&checkpoint)?;
        let same_form = json.cache == self.cache_form();
        let cached = if same_form { json.cached } else { 0 };
        if cached > 0 {
            let states = states(&checkpoint)?;
            // What was there is overwritten from here on, and would run again.
            self.cached = 0;
            let written = self.engine.write_rows(self.state.slot(), cached, &states);
            written.map_err(|error| match error {
                Error::Format { problem, .. } => Error::format(file.display(), problem),
                other => other,
            })?;
        }
        json.conversation.enable_thinking = self.conversation.enable_thinking;
        (self.cached, self.image, self.pictures) = (cached, vectors, pictures);
        self.image_rows = json.pictures * self.engine.model.info().image.map_or(0, |info| info.tokens);
        (self.tokens, self.row_tokens) = (json.tokens, json.row_tokens);
        self.forgotten = Forgotten { at: json.forgotten_at, tokens: json.forgotten };
        (self.conversation, self.answer_at, self.image_time) = (json.conversation, json.answer_at, Duration::ZERO);
        Ok(())
    }

    /// What its rows of the cache hold, by state; nothing where there is none yet.
    fn cached_rows(&self) -> Result<Vec<(String, Vec<u32>)>> {
        if self.cached > 0 { self.engine.rows(self.state.slot(), self.cached) } else { Ok(Vec::new()) }
    }

    /// The form of keys and values in the cache.
    fn cache_form(&self) -> String {
        self.engine.report.kv.map_or("none".into(), |kv| format!("{kv:?}"))
    }

    /// The bytes of all pictures, one behind the other.
    fn pixels(&self) -> Vec<u8> {
        self.pictures.iter().flat_map(|picture| picture.rgb.iter().copied()).collect()
    }

    /// What a file holds, if it can be a session of this engine.
    fn read(&self, checkpoint: &Checkpoint) -> Result<Loaded> {
        let file = checkpoint.path().display();
        let broken = |problem: String| Error::format(&file, problem);
        match checkpoint.metadata().get(KEY).map(String::as_str) {
            Some(VERSION) => {}
            None => return Err(broken("is not a saved session".into())),
            Some(other) => {
                let object = format!("{file}: version {other:?} of a saved session");
                return Err(Error::Unsupported { object, problem: format!("version {VERSION} is read") });
            }
        }
        let bytes = |name: &str| -> Result<Cow<'_, [u8]>> {
            let tensor = checkpoint.get(name).ok_or_else(|| broken(format!("has no tensor {name}")))?;
            match tensor.stored {
                StorageDType::U8 => checkpoint.bytes(name),
                other => Err(broken(format!("its tensor {name} is of {other}, expected u8"))),
            }
        };
        let json: Json = serde_json::from_slice(&bytes(SESSION)?)
            .map_err(|e| broken(format!("its tensor {SESSION} is wrong: {e}")))?;
        if json.model != self.engine.fingerprint {
            let problem = "was saved with another model, or with other options of precision or of the device";
            return Err(broken(problem.into()));
        }
        self.check(&json).map_err(|error| match error {
            Error::Argument { name, problem } => broken(format!("{name} {problem}")),
            other => other,
        })?;
        let vectors = self.vectors(checkpoint, &json)?;
        let pictures = self.read_pictures(&json, &bytes(PICTURES)?).map_err(broken)?;
        Ok(Loaded { json, vectors, pictures })
    }

    /// Checks the numbers of a saved session against each other and the model.
    fn check(&self, json: &Json) -> Result<()> {
        let info = self.engine.model.info();
        [&json.tokens, &json.forgotten].iter().try_for_each(|ids| self.check_tokens(ids))?;
        let (n, model) = (json.tokens.len(), &self.engine.model);
        let wrong =
            |name: &str, is: usize, max: usize| Err(Error::argument(name, format!("is {is}, expected 0..={max}")));
        if json.row_tokens.len() != n {
            let problem = format!("are {}, and {n} tokens", json.row_tokens.len());
            return Err(Error::argument("tokens of rows", problem));
        }
        let can_be =
            |id: u32, row: u32| row == id || [true, false].map(|image| model.prompt_token(id, image)).contains(&row);
        if let Some((id, row)) = json.tokens.iter().zip(&json.row_tokens).find(|(id, row)| !can_be(**id, **row)) {
            return Err(Error::argument("tokens of rows", format!("have {row} for the token {id}")));
        }
        let of_picture = info.image.map_or(0, |info| info.tokens);
        if json.pictures > 0 && of_picture == 0 {
            return Err(Error::argument("pictures", "are there, and the model reads text only"));
        }
        let rows = json.pictures.saturating_mul(of_picture).saturating_add(n);
        self.check_room(0, rows)?;
        if json.cached > rows {
            return wrong("the number of rows in the cache", json.cached, rows);
        }
        if json.forgotten_at > n {
            return wrong("the place of what has left", json.forgotten_at, n);
        }
        if let Some(at) = json.answer_at.filter(|&at| at > n) {
            return wrong("the place of the answer", at, n);
        }
        if json.conversation.fits(n.saturating_add(json.forgotten.len())) {
            Ok(())
        } else {
            Err(Error::argument("a message", "lies behind the last token"))
        }
    }

    /// The vectors of the pictures.
    fn vectors(&self, checkpoint: &Checkpoint, json: &Json) -> Result<Vec<f32>> {
        let n = self.engine.model.info().image.map_or(0, |info| json.pictures * info.tokens * info.width);
        let found = checkpoint.get(VECTORS).map_or(0, |tensor| tensor.elements());
        if found != n {
            let problem = format!("has {found} numbers of pictures, expected {n}");
            return Err(Error::format(checkpoint.path().display(), problem));
        }
        if n == 0 {
            return Ok(Vec::new());
        }
        let vectors = checkpoint.read_f32(VECTORS, 0..n)?;
        match vectors.iter().position(|v| !v.is_finite()) {
            None => Ok(vectors),
            Some(i) => {
                let problem = format!("number {i} of its pictures is {}, expected a finite one", vectors[i]);
                Err(Error::format(checkpoint.path().display(), problem))
            }
        }
    }

    /// The pictures at the model's size.
    fn read_pictures(&self, json: &Json, bytes: &[u8]) -> Result<Vec<Arc<Image>>, String> {
        let size = self.engine.model.info().image.map_or(0, |info| info.size);
        let of_one = 3 * size * size;
        if bytes.len() != json.pictures * of_one {
            return Err(format!("has {} bytes of pictures, expected {}", bytes.len(), json.pictures * of_one));
        }
        let picture = |bytes: &[u8]| Image::from_rgb(size, size, bytes.to_vec()).map(Arc::new);
        bytes.chunks(of_one.max(1)).map(|bytes| picture(bytes).map_err(|error| error.to_string())).collect()
    }
}

/// Rejects a file that is there already and is no saved session.
fn check_target(file: &Path) -> Result<()> {
    let is_session = || Checkpoint::open(file).is_ok_and(|found| found.metadata().contains_key(KEY));
    match file.exists() && !is_session() {
        true => Err(Error::argument("file", format!("{} is there already, and is no saved session", file.display()))),
        false => Ok(()),
    }
}

/// The states that a file holds.
fn states(checkpoint: &Checkpoint) -> Result<Vec<(String, Cow<'_, [u32]>)>> {
    let names = checkpoint.tensors().filter_map(|tensor| Some((&tensor.name, tensor.name.strip_prefix(STATE)?)));
    names.map(|(name, state)| Ok((state.to_owned(), checkpoint.read_words(name)?))).collect()
}
