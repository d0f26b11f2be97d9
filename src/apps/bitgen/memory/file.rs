//! A memory's file: written as safetensors, read in that form or as the original's `torch.save`.

use std::path::Path;

use crate::apps::bitgen::memory::EpisodicMemory;
use crate::error::{Error, Result};
use crate::files::{Checkpoint, NewTensor, StorageDType, atomic, write_tensors};

/// The metadata entry with the number of the form; `slots` and `width` stand beside it.
const FORM_KEY: &str = "ternion.memory";
/// The one form there is.
const FORM: &str = "1";
/// The tensor by whose name the others' prefix is found.
const MEAN: &str = "memory_mean";

impl EpisodicMemory {
    /// Writes the memory to a safetensors file: `memory_mean` `[slots, width]`, `memory_logvar` `[1]`, and
    /// `memory_quality`, `memory_read_count`, `memory_write_count`, `memory_age` `[slots]`, all F32, under the original's
    /// names. The file is the whole new memory or the old one.
    ///
    /// # Errors
    /// Those of [`EpisodicMemory::check_target`].
    pub fn save(&self, file: impl AsRef<Path>) -> Result<()> {
        let (file, [slots, width]) = (file.as_ref(), self.sizes());
        let logvar = [self.logvar];
        let tensors: [(&str, &[usize], &[f32]); 6] = [
            (MEAN, &[slots, width], &self.mean),
            ("memory_logvar", &[1], &logvar),
            ("memory_quality", &[slots], &self.quality),
            ("memory_read_count", &[slots], &self.read_count),
            ("memory_write_count", &[slots], &self.write_count),
            ("memory_age", &[slots], &self.age),
        ];
        let new = |(name, shape, values)| {
            (name, NewTensor { stored: StorageDType::F32, shape, bytes: bytemuck::cast_slice::<f32, u8>(values) })
        };
        let metadata = [(FORM_KEY, FORM.to_owned()), ("slots", slots.to_string()), ("width", width.to_string())];
        Self::check_target(file)?;
        write_tensors(file, tensors.map(new), &metadata)
    }

    /// Checks that [`EpisodicMemory::save`] may write a file: there is none, or one that holds a memory and nothing else, in
    /// this form.
    ///
    /// # Errors
    /// [`Error::Argument`] for another file, and [`Error::Io`] for one that cannot be written.
    pub fn check_target(file: impl AsRef<Path>) -> Result<()> {
        let file = file.as_ref();
        let own = |memory: &Checkpoint| {
            memory.metadata().contains_key(FORM_KEY) && memory.tensors().all(|t| t.name.starts_with("memory_"))
        };
        if file.exists() && !Checkpoint::open(file).is_ok_and(|memory| own(&memory)) {
            let problem =
                "is not a memory that this program has written, and would be overwritten; give the name of a new file";
            return Err(Error::argument(file.display(), problem));
        }
        atomic::check_writable(file)
    }

    /// Opens a memory of `[slots, width]`: what [`EpisodicMemory::save`] wrote, what the original's `save_memory` did (a
    /// `torch.save` of a dict with the same names; what else is in it is passed over), or a checkpoint that holds one
    /// memory, such as a whole BitGen. Names may have a prefix in front of `memory_`, the same for all.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::MissingTensors`], [`Error::Shape`] and [`Error::Unsupported`] for a tensor that
    /// is not there, of other sizes or not of floats, or for a newer form; [`Error::Format`] for two memories in one
    /// file, and for values that no memory has: NaN or infinity, negative counts, ages and qualities.
    pub fn open(file: impl AsRef<Path>, sizes: [usize; 2]) -> Result<Self> {
        let checkpoint = Checkpoint::open(file.as_ref())?;
        let path = checkpoint.path().display();
        if let Some(form) = checkpoint.metadata().get(FORM_KEY).filter(|&form| form != FORM) {
            let problem = format!("a memory of form {form}; form {FORM} can be read, update this program");
            return Err(Error::Unsupported { object: path.to_string(), problem });
        }
        let prefixes: Vec<&str> = checkpoint
            .tensors()
            .filter_map(|t| t.name.strip_suffix(MEAN))
            .filter(|p| p.is_empty() || p.ends_with('.'))
            .collect();
        match prefixes.as_slice() {
            [prefix] => Self::read(&checkpoint, prefix, sizes),
            [] => Err(Error::MissingTensors { file: path.to_string(), names: vec![MEAN.to_owned()] }),
            many => Err(Error::format(
                path,
                format!("holds {} memories, {}; give a file with one", many.len(), many.join(" and ")),
            )),
        }
    }

    /// The memory of `[slots, width]` whose tensors' names begin with `prefix`.
    pub(crate) fn read(checkpoint: &Checkpoint, prefix: &str, [slots, width]: [usize; 2]) -> Result<Self> {
        let file = || checkpoint.path().display().to_string();
        let read = |name: &str, shape: &[usize], min: f32| -> Result<Vec<f32>> {
            let name = format!("{prefix}{name}");
            let missing = || Error::MissingTensors { file: file(), names: vec![name.clone()] };
            let found = &checkpoint.get(&name).ok_or_else(missing)?.shape;
            let object = || format!("{}: tensor {name}", file());
            if found != shape {
                return Err(Error::shape(object(), format!("{shape:?}"), format!("{found:?}")));
            }
            let values = checkpoint.read_f32(&name, 0..shape.iter().product())?;
            match values.iter().position(|v| !v.is_finite() || *v < min) {
                Some(i) if min == 0.0 => {
                    Err(Error::format(object(), format!("element {i} is {}, expected 0 or more", values[i])))
                }
                Some(i) => {
                    Err(Error::format(object(), format!("element {i} is {}, expected a finite number", values[i])))
                }
                None => Ok(values),
            }
        };
        let logvar = read("memory_logvar", &[1], f32::MIN)?;
        let [logvar] = logvar[..] else {
            return Err(Error::shape(
                format!("{}: tensor {prefix}memory_logvar", file()),
                "[1]",
                format!("{:?}", [logvar.len()]),
            ));
        };
        if !logvar.exp().is_finite() {
            let object = format!("{}: tensor {prefix}memory_logvar", file());
            return Err(Error::format(object, format!("is {logvar}, the logarithm of no variance in 32 bits")));
        }
        Ok(EpisodicMemory {
            width,
            mean: read(MEAN, &[slots, width], f32::MIN)?,
            logvar,
            quality: read("memory_quality", &[slots], 0.0)?,
            read_count: read("memory_read_count", &[slots], 0.0)?,
            write_count: read("memory_write_count", &[slots], 0.0)?,
            age: read("memory_age", &[slots], 0.0)?,
        })
    }
}
