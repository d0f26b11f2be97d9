//! What a device can do, as far as ops choose their kernels by it.

/// What an adapter can do. Tests mask these to run every variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Subgroup operations in compute shaders.
    pub subgroups: bool,
    /// The 4×8-bit integer dot product is native (elsewhere it is emulated, or done in floats).
    pub dot4: bool,
    /// A software adapter with subgroups of at least 8 lanes. Its loads are serial per lane, so kernels load each word
    /// once and shuffle it. Only with `subgroups`.
    pub software_subgroups: bool,
    /// Kernels can unpack 16-bit floats; without it only f32 weights and caches run.
    pub unpack_f16: bool,
    /// Largest range of a buffer that a kernel can bind, in bytes; larger weights are split.
    pub max_binding: u64,
    /// A CPU computes, that of the driver or of the backend: barriers are expensive, loads are never coalesced, and
    /// launches are cheap. It decides which variant of an op is the default, never which ones are possible, and whether ops may
    /// make their input again in every workgroup ([`crate::plan::PlanBuilder::makes_inputs_again`]).
    pub cpu_driver: bool,
}

impl Caps {
    /// No optional capability, and a binding limit that splits nothing.
    pub const PLAIN: Caps = Caps {
        subgroups: false,
        dot4: false,
        software_subgroups: false,
        unpack_f16: true,
        max_binding: u64::MAX,
        cpu_driver: false,
    };

    /// Every combination of the optional capabilities that `self` has.
    pub fn subsets(self) -> Vec<Caps> {
        let mut all = Vec::new();
        for bits in 0..8 {
            let caps =
                Caps { subgroups: bits & 1 != 0, dot4: bits & 2 != 0, software_subgroups: bits & 4 != 0, ..self };
            let had = |mine: bool, its: bool| mine || !its;
            if had(self.subgroups, caps.subgroups)
                && had(self.dot4, caps.dot4)
                && had(self.software_subgroups && caps.subgroups, caps.software_subgroups)
            {
                all.push(caps);
            }
        }
        all
    }

    /// The same without subgroup operations.
    pub fn without_subgroups(self) -> Caps {
        Caps { subgroups: false, software_subgroups: false, ..self }
    }

    /// The defines that every kernel gets.
    pub fn defines(self) -> Vec<&'static str> {
        let flags =
            [(self.subgroups, "SUBGROUPS"), (self.dot4, "DOT4"), (self.software_subgroups, "SOFTWARE_SUBGROUPS")];
        flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect()
    }
}
