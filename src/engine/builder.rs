//! An engine's options one by one.

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::cpu_level::CpuLevel;
use crate::engine::Engine;
use crate::engine::cancel::Cancel;
use crate::engine::open::Progress;
use crate::engine::options::{DeviceChoice, KvPrecision, LmHead, Options, Precision};
use crate::error::Result;
use crate::files::ModelFiles;
use crate::models::{Activations, HiddenAct};

/// What [`EngineBuilder::progress`] is told.
type OnProgress<'a> = Box<dyn FnMut(Progress) -> ControlFlow<()> + 'a>;

/// Opens an engine with some of its [`Options`]; the others are the usual ones.
///
/// ```
/// use ternion::Engine;
/// use ternion::engine::DeviceChoice;
///
/// # #[cfg(feature = "demo")] {
/// let engine = Engine::builder().device(DeviceChoice::Cpu).context(128).sessions(1).open_demo()?;
/// assert_eq!(engine.context(), 128);
/// # }
/// # Ok::<(), ternion::Error>(())
/// ```
#[derive(Default)]
pub struct EngineBuilder<'a> {
    options: Options,
    progress: Option<OnProgress<'a>>,
}

impl fmt::Debug for EngineBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A method for each option, named as its field.
macro_rules! setters {
    ($($name:ident: $type:ty => $value:expr;)*) => {
        impl EngineBuilder<'_> {
            $(
                #[doc = concat!("[`Options::", stringify!($name), "`].")]
                #[must_use]
                pub fn $name(mut self, $name: $type) -> Self {
                    self.options.$name = $value;
                    self
                }
            )*
        }
    };
}

setters! {
    device: DeviceChoice => device;
    autotune: bool => autotune;
    cache: impl Into<PathBuf> => Some(cache.into());
    threads: usize => Some(threads);
    cpu_level: CpuLevel => Some(cpu_level);
    precision: Precision => precision;
    kv: KvPrecision => kv;
    head: LmHead => head;
    activations: Activations => activations;
    hidden_act: HiddenAct => Some(hidden_act);
    batch_invariant: bool => batch_invariant;
    context: usize => Some(context);
    reserve: usize => Some(reserve);
    max_memory: u64 => Some(max_memory);
    sessions: usize => sessions;
    tokenizer: impl Into<PathBuf> => Some(tokenizer.into());
    needs_tokenizer: bool => needs_tokenizer;
    prefill_rows: usize => prefill_rows;
    cancel: Cancel => Some(cancel);
    probed_layers: impl Into<Vec<usize>> => probed_layers.into();
}

impl<'a> EngineBuilder<'a> {
    /// A callback before each weight is loaded and each kernel is timed, which ends the opening where it breaks.
    #[must_use]
    pub fn progress(mut self, progress: impl FnMut(Progress) -> ControlFlow<()> + 'a) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// Opens a model.
    ///
    /// # Errors
    /// As [`Engine::open_with`].
    pub fn open(self, files: impl Into<ModelFiles>) -> Result<Engine> {
        match self.progress {
            Some(progress) => Engine::open_with(files, self.options, progress),
            None => Engine::open(files, self.options),
        }
    }

    /// Opens the demo model.
    ///
    /// # Errors
    /// As [`Engine::demo`].
    #[cfg(feature = "demo")]
    pub fn open_demo(self) -> Result<Engine> {
        self.open(ModelFiles::demo()?)
    }
}
