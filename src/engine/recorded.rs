//! A model's plans for a device, before any weight is loaded, and the memory that they need.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use crate::engine::cache::{FIRST_ROWS, StatePool};
use crate::engine::device::Opened;
use crate::engine::ladder::{Ladder, Rungs};
use crate::engine::open::{Opening, required_tokenizer};
use crate::engine::options::Options;
use crate::engine::residency::{Residency, too_little};
use crate::error::{Error, Result};
use crate::files::{ModelFiles, Tokenizer};
use crate::models::{self, ChatModel, ModelInfo, OpenedPrompt, TextShape, slots};
use crate::plan::{Caps, MemoryPlan, Plan, PlanBuilder, SlotKind};
use crate::tensor::Spec;

/// Maximum number of tokens of a session unless the caller asks for more.
const DEFAULT_CONTEXT: usize = 2048;
/// Bounds on what a caller may ask for.
pub(crate) const MAX_SESSIONS: usize = 64;
const MAX_PREFILL_ROWS: usize = 1024;

/// What a model needs of a device's memory, in bytes: at most, for matrices whose codes may turn out to need 1 bit are counted
/// at 2. Beside it a device keeps its programs, and passes weights through memory of the system while they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Estimate {
    /// Of the weights, and of constants of the plans.
    pub weight_bytes: u64,
    /// Of the KV cache and other states of all sessions, when the model is opened.
    pub state_bytes: u64,
    /// Of these when all sessions are full.
    pub max_state_bytes: u64,
    /// Of what ops write, of the programs that are prepared when the model is opened.
    pub working_bytes: u64,
    /// The least that the option `max_memory` can be: all of it when the model is opened, or less, where experts and layers move
    /// through the memory as they are needed, and sessions are full from the beginning.
    pub least_bytes: u64,
    /// Tokens that a session holds.
    pub context: usize,
    /// Sessions.
    pub sessions: usize,
}

impl Estimate {
    /// All of it when the model is opened.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.state_bytes + self.working_bytes
    }

    /// All of it when all sessions are full.
    pub fn max_bytes(&self) -> u64 {
        self.weight_bytes + self.max_state_bytes + self.working_bytes
    }
}

/// Bytes of a buffer for so many: some devices have none of fewer than 16.
fn padded(bytes: u64) -> u64 {
    bytes.max(16)
}

/// Bytes of the temporaries of plans.
fn working<'a>(plans: impl IntoIterator<Item = &'a Arc<Plan>>) -> u64 {
    let sizes = |plan: &Arc<Plan>| MemoryPlan::assign(plan, false).sizes;
    plans.into_iter().flat_map(sizes).map(|words| padded(4 * words as u64)).sum()
}

/// The error of what needs more memory than the option `max_memory` allows.
pub(crate) fn beyond(what: String, needed: u64, limit: u64) -> Error {
    Error::OutOfMemory { what, needed, available: Some(limit), device: "the option `max_memory`".into() }
}

/// A model on its way to a device.
pub(crate) struct Recorded {
    pub opening: Opening,
    pub model: Box<dyn ChatModel>,
    pub states: Arc<StatePool>,
    pub whole: TextShape,
    pub ladder: Ladder,
    /// The plan that encodes an image, if the model reads any.
    pub image: Option<Arc<Plan>>,
    /// Bytes of the states when all sessions are full.
    pub full_states: u64,
}

impl Recorded {
    /// Reads the headers of the files, opens the device, and records the plans.
    ///
    /// # Errors
    /// Those of [`Opening::new`] and of the model; [`Error::Argument`] for options out of range; [`Error::OutOfMemory`] where
    /// the device has no buffer for the context of a session.
    pub fn new(files: ModelFiles, options: &Options) -> Result<Self> {
        check_options(options)?;
        let opening = Opening::new(files, &options.device_options(), options.model_options())?;
        let model = models::open_chat(&opening.files, &opening.weights, opening.load)?;
        let states = states(options, model.info(), &opening.device)?;
        // Kernels are chosen for a program's rows and outputs: as many whatever the number of sessions.
        let least = if options.batch_invariant { Ladder::MANY } else { 0 };
        let whole = TextShape {
            max_rows: options.prefill_rows.max(options.sessions).max(least),
            max_outputs: options.sessions.max(least),
            kv_rows: states.rows(),
            context: states.context(),
            sessions: options.sessions,
            kv_dtype: options.kv.dtype(opening.precision),
            images: model.info().image.is_some(),
        };
        let caps = opening.device.caps();
        let record = |shape: &TextShape| record(model.as_ref(), &caps, shape, &options.probed_layers);
        let rungs = if options.batch_invariant { Rungs::Largest } else { Rungs::All };
        let ladder = Ladder::record(whole, (rungs, model.info().layers), record)?;
        let full_states = full_states(model.as_ref(), whole, &opening.device)?;
        let image = model.info().image.map(|_| model.record_image()).transpose()?.map(Arc::new);
        Ok(Recorded { opening, model, states, whole, ladder, image, full_states })
    }

    /// The tokenizer, and how conversations become text.
    ///
    /// # Errors
    /// Those of opening them; [`Error::Argument`] for a tokenizer that is needed and not there.
    pub fn tokenizer(&self, options: &Options) -> Result<(Option<Tokenizer>, Option<OpenedPrompt>)> {
        let (model, path) = (&self.model, options.tokenizer.as_deref());
        let tokenizer = self.opening.tokenizer(path, model.vocab(), model.family())?;
        if options.needs_tokenizer {
            required_tokenizer(tokenizer.as_ref())?;
        }
        let prompt = model.prompt().open(&self.opening.files, tokenizer.as_ref())?;
        let (files, vocab) = (&self.opening.files, model.vocab());
        for id in prompt.iter().flat_map(|opened| &opened.stop).filter(|&&id| id as usize >= vocab) {
            log::warn!("{files}: the token {id}, which is to end answers, is outside the vocabulary of {vocab}");
        }
        Ok((tokenizer, prompt))
    }

    /// The same within the memory that an option allows: where the model needs more, experts move through the device's memory, and
    /// layers where that is not enough. Then the cache has all its rows from the beginning.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where that is more, too.
    pub fn within_memory(mut self, options: &Options) -> Result<Self> {
        let Some(limit) = options.max_memory else { return Ok(self) };
        let estimate = self.estimate()?;
        if estimate.bytes() <= limit {
            return Ok(self);
        }
        self.states = StatePool::new(self.whole.context, self.whole.context, self.whole.sessions);
        self.whole.kv_rows = self.states.rows();
        let caps = self.opening.device.caps();
        let record = |shape: &TextShape| record(self.model.as_ref(), &caps, shape, &options.probed_layers);
        self.ladder = self.ladder.recorded_for(self.whole, record)?;
        let (plans, Estimate { weight_bytes, max_state_bytes, .. }) = (self.plans(), self.estimate()?);
        // Nothing is left for programs that are prepared when a step needs them.
        let working_bytes = working(&plans);
        let mut least = estimate.bytes();
        for layers in [false, true] {
            let moving = self.moving(&plans, layers, limit)?;
            let fixed = weight_bytes + max_state_bytes + working_bytes - moving.most_bytes();
            least = fixed + moving.least_bytes();
            if least <= limit {
                let constants = self.constant_bytes(&plans).values().sum::<u64>() + padded(1);
                self.opening.residency = Some(moving.with_rest(constants + max_state_bytes + working_bytes));
                return Ok(self);
            }
        }
        if estimate.bytes() <= least {
            Err(beyond("the model".into(), estimate.bytes(), limit))
        } else {
            Err(too_little(least, limit))
        }
    }

    /// Experts, or with `layers` also matrices of layers, in a memory of `limit` bytes.
    fn moving(&self, plans: &[Arc<Plan>], layers: bool, limit: u64) -> Result<Residency> {
        Residency::of(plans, &self.opening.weights, (layers, self.model.vocab()), limit)
    }

    /// Bytes of the constants of plans, by name.
    fn constant_bytes(&self, plans: &[Arc<Plan>]) -> HashMap<String, u64> {
        let constants = plans.iter().flat_map(|plan| &plan.slots).filter_map(|slot| match &slot.kind {
            SlotKind::Constant(name, _) => Some((format!("constant {name}"), padded(4 * slot.spec.words() as u64))),
            _ => None,
        });
        constants.collect()
    }

    /// All plans.
    pub fn plans(&self) -> Vec<Arc<Plan>> {
        self.ladder.plans().chain(&self.image).cloned().collect()
    }

    /// What the plans need.
    ///
    /// # Errors
    /// Those of reading the form of a weight.
    pub fn estimate(&self) -> Result<Estimate> {
        let plans = self.plans();
        let mut weights = self.constant_bytes(&plans);
        for (weight, _) in plans.iter().flat_map(|plan| plan.weights()) {
            weights.insert(weight.to_string(), padded(self.opening.weights.most_bytes(weight)?));
        }
        let states = |plan: &Arc<Plan>| plan.states().map(|(_, spec)| 4 * spec.words() as u64).sum();
        let prepared = self.ladder.first_plans().chain(&self.image);
        // And one that stands for what no node uses.
        let weight_bytes = weights.values().sum::<u64>() + padded(1);
        let moving = self.moving(&plans, true, 0)?;
        let staying = weight_bytes - moving.most_bytes();
        let least_bytes = staying + moving.least_bytes() + self.full_states + working(&plans);
        let all = Estimate {
            weight_bytes,
            least_bytes,
            state_bytes: plans.first().map_or(0, states),
            max_state_bytes: self.full_states,
            working_bytes: working(prepared),
            context: self.whole.context,
            sessions: self.whole.sessions,
        };
        Ok(Estimate { least_bytes: least_bytes.min(all.bytes()), ..all })
    }
}

fn check_options(options: &Options) -> Result<()> {
    let within = |name: &str, n: usize, max: usize| {
        let problem = || Error::argument(name, format!("is {n}, expected 1..={max}"));
        if (1..=max).contains(&n) { Ok(()) } else { Err(problem()) }
    };
    within("sessions", options.sessions, MAX_SESSIONS)?;
    within("prefill_rows", options.prefill_rows, MAX_PREFILL_ROWS)
}

fn context(options: &Options, info: &ModelInfo) -> Result<usize> {
    let max = info.max_positions;
    match options.context {
        None => Ok(max.min(DEFAULT_CONTEXT)),
        Some(n) if (1..=max).contains(&n) => Ok(n),
        Some(n) => Err(Error::argument("context", format!("is {n}; the model has 1..={max} positions"))),
    }
}

/// The states of all sessions, on this device.
fn states(options: &Options, info: &ModelInfo, device: &Opened) -> Result<Arc<StatePool>> {
    let context = context(options, info)?;
    let first = match options.reserve {
        Some(n) if (1..=context).contains(&n) => n,
        Some(n) => return Err(Error::argument("reserve", format!("is {n}; the context has 1..={context} tokens"))),
        None if device.takes_memory_at_once() => FIRST_ROWS,
        None => context,
    };
    Ok(StatePool::new(context, first, options.sessions))
}

/// The plan of a step of text, with the hidden vectors of these layers among its outputs, as far as it has them.
pub(crate) fn record(
    model: &dyn ChatModel,
    caps: &Caps,
    shape: &TextShape,
    probed_layers: &[usize],
) -> Result<Arc<Plan>> {
    let mut plan = model.text_plan(PlanBuilder::new().for_device(caps), shape)?;
    for name in probed_layers.iter().map(|&i| slots::hidden(i)) {
        if let Some(&slot) = plan.tags.get(&name) {
            plan.outputs.insert(name, slot);
        }
    }
    Ok(Arc::new(plan))
}

/// Bytes of the states when all sessions are full.
///
/// # Errors
/// [`Error::OutOfMemory`] where the device has no buffer for the context of one session.
fn full_states(model: &dyn ChatModel, whole: TextShape, device: &Opened) -> Result<u64> {
    let full = model.record_text(&TextShape { kv_rows: whole.context * whole.sessions, ..whole })?;
    let (max, sessions) = (device.caps().max_binding, whole.sessions as u64);
    let bytes = |(name, spec): (&str, &Spec)| match 4 * spec.words() as u64 {
        bytes if bytes / sessions <= max => Ok(bytes),
        bytes => Err(Error::OutOfMemory {
            what: format!("a session of {} tokens: its part of the state {name}", whole.context),
            needed: bytes / sessions,
            available: Some(max),
            device: format!("one buffer of {}", device.describe()),
        }),
    };
    full.states().map(bytes).sum()
}
