//! How many rows count as few, and how kernels for few rows, and for more, divide their work among threads: what ops offer as
//! variants, by name.

use crate::plan::{Caps, Kernel, Variant, Variants};
use crate::tensor::Spec;

/// Maximum number of rows for which kernels compute dot products row by row; with more rows, rows share what is read.
pub(super) const MAX_MATVEC_ROWS: usize = 4;
/// Maximum number of rows of a decode step: attention over the cache then handles each row separately.
pub(super) const MAX_DECODE_ROWS: usize = 8;

/// The variants of a kernel that takes a workgroup for each row of `x`, of 64 threads: of few rows also of 256, which wait for
/// memory less often where threads run at the same time.
pub(super) fn with_a_group_per_row(caps: &Caps, x: &Spec, kernel: Kernel) -> Variants {
    let wide = Kernel { defines: [&kernel.defines[..], &["WG256"]].concat(), ..kernel.clone() };
    let [narrow, wide] = [("64-threads", kernel), ("256-threads", wide)].map(|(name, k)| Variant::new(name, caps, k));
    match (x.rows() <= MAX_DECODE_ROWS, caps.cpu_driver) {
        (false, _) => Variants::usual(narrow),
        (true, false) => Variants::usual(wide).or(narrow),
        (true, true) => Variants::usual(narrow).or(wide),
    }
}

/// The variants of a product of codes for many rows on GPUs: dot products of bytes where the device has them, or sums that need
/// none. Drivers that compute on the CPU have no such instruction.
pub(super) fn of_many_rows(caps: &Caps, dots: Kernel, tiles: Kernel) -> Variants {
    let without = caps.without_subgroups();
    let tiles = Variant::new("tiles", &Caps { dot4: false, ..without }, tiles);
    let dots = Variant::new("dots", &without, dots);
    match (caps.dot4, caps.cpu_driver) {
        (false, _) => Variants::usual(tiles),
        (true, false) => Variants::usual(dots).or(tiles),
        (true, true) => Variants::usual(tiles).or(dots),
    }
}

/// A form of the kernels that import `shared/ternary_matvec.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FewRows {
    /// `k`: `split_k`, `v`: `vec4s_per_thread`, `t`: `tiles`, `i16`: `packed_i16`.
    pub name: &'static str,
    /// Shares of the columns in a workgroup; `split_k · tiles` is at most 8.
    pub split_k: usize,
    /// vec4 outputs computed per thread: 1, 2 or 4, consecutive ones.
    pub vec4s_per_thread: usize,
    /// Maximum number of tiles in a workgroup of a fused layer, which share the work of making the codes.
    pub tiles: usize,
    /// One 32-bit product computes two columns, instead of a dot product of bytes four. Always so without `dot4`.
    packed_i16: bool,
    /// Sums are looked up in tables that neighbouring lanes hold. Only with software subgroups.
    pub lookup_tables: bool,
}

/// For GPUs, where a workgroup makes codes for its tiles.
const GPU: FewRows = form("k4-v1-t2", [4, 1, 2]);
/// For GPUs, where it only reads them: many shares, so that each waits for memory less often.
const GPU_PRODUCT: FewRows = form("k8-v1-t1", [8, 1, 1]);
/// For drivers that compute on the CPU.
const CPU_DRIVER: FewRows = FewRows { packed_i16: true, ..form("k1-v4-t4-i16", [1, 4, 4]) };
/// For drivers that compute on the CPU and have subgroups.
const TABLES: FewRows = FewRows { lookup_tables: true, ..form("tables", [1, 4, 4]) };
const FORMS: [FewRows; 6] = [
    GPU,
    CPU_DRIVER,
    TABLES,
    FewRows { packed_i16: true, ..form("k4-v1-t2-i16", [4, 1, 2]) },
    FewRows { packed_i16: true, ..form("k2-v2-t4-i16", [2, 2, 4]) },
    GPU_PRODUCT,
];

const fn form(name: &'static str, [split_k, vec4s_per_thread, tiles]: [usize; 3]) -> FewRows {
    FewRows { name, split_k, vec4s_per_thread, tiles, packed_i16: false, lookup_tables: false }
}

impl FewRows {
    /// The default form, on GPUs `gpu`.
    fn usual(caps: &Caps, gpu: FewRows) -> FewRows {
        match (caps.cpu_driver, caps.software_subgroups) {
            (false, _) => gpu,
            (true, false) => CPU_DRIVER,
            (true, true) => TABLES,
        }
    }

    fn is_possible(&self, caps: &Caps) -> bool {
        // With software subgroups, tables replace the other forms with 4 vec4s per thread.
        if caps.software_subgroups { self.lookup_tables || self.vec4s_per_thread < 4 } else { !self.lookup_tables }
    }

    /// A variant for each form that is possible, the default first, of kernels that make codes.
    pub fn variants(caps: &Caps, variant: impl Fn(FewRows) -> Variant) -> Variants {
        Self::possible(caps, GPU, variant)
    }

    /// The same of kernels that only multiply.
    pub fn product_variants(caps: &Caps, variant: impl Fn(FewRows) -> Variant) -> Variants {
        Self::possible(caps, GPU_PRODUCT, variant)
    }

    fn possible(caps: &Caps, gpu: FewRows, variant: impl Fn(FewRows) -> Variant) -> Variants {
        let possible = FORMS.into_iter().filter(|form| form.is_possible(caps));
        possible.fold(Variants::usual(variant(Self::usual(caps, gpu))), |all, form| all.or(variant(form)))
    }

    /// The defines that make this form.
    pub fn defines(self, caps: &Caps) -> Vec<&'static str> {
        if self.lookup_tables {
            return vec!["TABLES"];
        }
        let packed = self.packed_i16 || !caps.dot4;
        let flags =
            [(self.vec4s_per_thread == 2, "VEC4S2"), (self.vec4s_per_thread == 4, "VEC4S4"), (packed, "PACKED_I16")];
        flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::TILE_ROWS;

    #[test]
    fn every_form_makes_whole_workgroups() {
        for form in FORMS {
            let shares = form.split_k * form.tiles;
            assert!((1..=8).contains(&shares) && form.split_k.is_power_of_two(), "{form:?}");
            assert!((TILE_ROWS / 4 / form.vec4s_per_thread * shares).is_multiple_of(32), "{form:?}");
        }
    }

    #[test]
    fn the_kind_of_device_orders_the_forms_and_changes_none() {
        for caps in (Caps { subgroups: true, dot4: true, software_subgroups: true, ..Caps::PLAIN }).subsets() {
            let of = |cpu_driver| Caps { cpu_driver, ..caps };
            let possible = |caps: Caps| FORMS.into_iter().filter(|f| f.is_possible(&caps)).collect::<Vec<_>>();
            assert_eq!(possible(of(true)), possible(of(false)));
            for caps in [of(true), of(false)] {
                for gpu in [GPU, GPU_PRODUCT] {
                    assert!(FewRows::usual(&caps, gpu).is_possible(&caps), "{caps:?}");
                }
            }
        }
    }
}
