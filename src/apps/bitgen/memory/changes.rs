//! What changes a memory, and its statistics.
//!
//! The formulas are those of the original's memory (`GPM` in BitGen's `larima_memory.py`), after Das et al. 2024
//! (Larimar).

use crate::apps::bitgen::memory::EpisodicMemory;
use crate::apps::bitgen::similarity::length;
use crate::error::{Error, Result};

/// How far a quality moves at a time in the original.
pub const QUALITY_RATE: f32 = 0.1;
/// How fast quality falls with age in the original.
pub const DECAY_RATE: f32 = 0.01;

/// An item that was written, and the slot that it went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryWrite {
    /// The item's number among those given.
    pub item: usize,
    /// The slot.
    pub slot: usize,
}

/// Statistics of a memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryStatistics {
    /// Slots.
    pub slots: usize,
    /// Slots that were written at least once.
    pub written_slots: usize,
    /// Slots that were read at least once.
    pub read_slots: usize,
    /// Writes, all slots together.
    pub writes: f64,
    /// Reads, all slots together: a slot counts once a pass.
    pub reads: f64,
    /// Mean of the slots' qualities.
    pub quality: f64,
    /// Mean of the slots' ages.
    pub age: f64,
    /// Mean length of the slots' means.
    pub length: f64,
    /// How evenly slots are read: `−Σ p ln p / ln slots`, p the slots' shares of all reads. 1: all alike; 0: one alone.
    /// None before the first read.
    pub evenness: Option<f64>,
}

impl EpisodicMemory {
    /// Writes items `[n, width]`, the most important ones first: the i-th of them to the slot with the i-th fewest
    /// writes, each slot at most once. If there are more items than slots, the least important ones are left out. Ties
    /// go to the first item and the first slot; without `importance` `[n]`, all items are equal.
    ///
    /// ```text
    /// mean[slot]        ← (1 − alpha) · mean[slot] + alpha · item
    /// write_count[slot] ← write_count[slot] + 1
    /// ```
    ///
    /// Quality and age stay as they are, as in the original; [`EpisodicMemory::renew`] makes them new. Returns which
    /// item went to which slot.
    ///
    /// # Errors
    /// [`Error::Argument`] for items of another width, values that are not finite, an importance for another number of
    /// items, or alpha outside of 0..=1. Then nothing is written.
    pub fn write(&mut self, items: &[f32], importance: Option<&[f32]>, alpha: f32) -> Result<Vec<MemoryWrite>> {
        let (width, n) = (self.width, items.len() / self.width.max(1));
        if !items.len().is_multiple_of(width.max(1)) {
            return Err(Error::argument("memory items", format!("{} values, expected rows of {width}", items.len())));
        }
        if let Some(i) = items.iter().position(|v| !v.is_finite()) {
            return Err(Error::argument("memory items", format!("value {i} is {}, expected finite numbers", items[i])));
        }
        let importance = importance.map_or_else(|| vec![1.0; n], <[f32]>::to_vec);
        if importance.len() != n || importance.iter().any(|v| v.is_nan()) {
            let problem = format!("{} values for {n} items, expected a number for each", importance.len());
            return Err(Error::argument("memory importance", problem));
        }
        unit("memory alpha", alpha)?;
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]));
        let mut slots: Vec<usize> = (0..self.write_count.len()).collect();
        slots.sort_by(|&a, &b| self.write_count[a].total_cmp(&self.write_count[b]));
        let written: Vec<MemoryWrite> =
            order.into_iter().zip(slots).map(|(item, slot)| MemoryWrite { item, slot }).collect();
        for &MemoryWrite { item, slot } in &written {
            let mean = &mut self.mean[slot * width..(slot + 1) * width];
            let item = &items[item * width..(item + 1) * width];
            mean.iter_mut().zip(item).for_each(|(mean, item)| *mean = (1.0 - alpha) * *mean + alpha * item);
            self.write_count[slot] += 1.0;
        }
        Ok(written)
    }

    /// Records how useful what was read from `slots` was, 0 to 1: `quality ← (1 − rate) · quality + rate · success`, once for
    /// each slot, however often it is there. The original's rate is [`QUALITY_RATE`]; a slot's quality multiplies its
    /// cosine when it is looked for.
    ///
    /// # Errors
    /// [`Error::Argument`] for a slot that is not there, and for success and rate outside of 0..=1.
    pub fn update_quality(&mut self, slots: &[u32], success: f32, rate: f32) -> Result<()> {
        unit("memory success", success)?;
        unit("memory rate", rate)?;
        for slot in self.each_once(slots)? {
            self.quality[slot] = (1.0 - rate) * self.quality[slot] + rate * success;
        }
        Ok(())
    }

    /// Lets all slots age by 1, and lose quality the more the older they are: `age ← age + 1`, then
    /// `quality ← quality · exp(−rate · age)`. The original's rate is [`DECAY_RATE`]. As each call multiplies anew, n
    /// calls from age 0 leave `exp(−rate · n · (n + 1) / 2)`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a rate that is negative or not finite.
    pub fn decay(&mut self, rate: f32) -> Result<()> {
        if !(rate.is_finite() && rate >= 0.0) {
            return Err(Error::argument("memory rate", format!("is {rate}, expected a finite number from 0 on")));
        }
        for (age, quality) in self.age.iter_mut().zip(&mut self.quality) {
            *age += 1.0;
            *quality *= (-rate * *age).exp();
        }
        Ok(())
    }

    /// Sets the age of slots to 0 and their quality to 1, what a memory begins with. The original does not have this step:
    /// its slots fade for good, even those just written.
    ///
    /// # Errors
    /// [`Error::Argument`] for a slot that is not there.
    pub fn renew(&mut self, slots: &[u32]) -> Result<()> {
        for slot in self.each_once(slots)? {
            (self.age[slot], self.quality[slot]) = (0.0, 1.0);
        }
        Ok(())
    }

    /// Counts and means over all slots.
    pub fn statistics(&self) -> MemoryStatistics {
        let sum = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
        let (slots, reads) = (self.quality.len(), sum(&self.read_count));
        let n = slots.max(1) as f64;
        let shares = self.read_count.iter().map(|&count| f64::from(count) / reads).filter(|&p| p > 0.0);
        let entropy = || -shares.map(|p| p * p.ln()).sum::<f64>();
        let lengths = self.mean.chunks(self.width.max(1)).map(length);
        MemoryStatistics {
            slots,
            written_slots: self.write_count.iter().filter(|&&count| count > 0.0).count(),
            read_slots: self.read_count.iter().filter(|&&count| count > 0.0).count(),
            writes: sum(&self.write_count),
            reads,
            quality: sum(&self.quality) / n,
            age: sum(&self.age) / n,
            length: lengths.map(f64::from).sum::<f64>() / n,
            // One slot alone is read as evenly as can be.
            evenness: (reads > 0.0).then(|| if slots > 1 { entropy() / n.ln() } else { 1.0 }),
        }
    }

    /// The divergence of the slots, `N(mean, exp(logvar))`, from `N(0, 1)`, in nats a value, as the original trains with
    /// it: `½ · (exp(logvar) + mean of mean² − 1 − logvar)`.
    pub fn divergence(&self) -> f64 {
        let squares: f64 = self.mean.iter().map(|&v| f64::from(v).powi(2)).sum();
        let logvar = f64::from(self.logvar);
        0.5 * (logvar.exp() + squares / self.mean.len().max(1) as f64 - 1.0 - logvar)
    }

    /// Slots by number, checked, each once.
    fn each_once(&self, slots: &[u32]) -> Result<Vec<usize>> {
        let n = self.quality.len();
        if let Some(slot) = slots.iter().find(|&&slot| slot as usize >= n) {
            return Err(Error::argument("memory slot", format!("{slot}, expected 0..{n}")));
        }
        let mut slots: Vec<usize> = slots.iter().map(|&slot| slot as usize).collect();
        slots.sort_unstable();
        slots.dedup();
        Ok(slots)
    }
}

/// Checks a number of 0..=1.
fn unit(name: &str, value: f32) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::argument(name, format!("is {value}, expected 0 to 1")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three slots of width 2, written 1, 0 and 0 times.
    fn memory() -> EpisodicMemory {
        EpisodicMemory {
            width: 2,
            mean: vec![1.0, 2.0, 3.0, 4.0, -1.0, 0.0],
            logvar: 0.0,
            quality: vec![1.0, 0.5, 0.25],
            read_count: vec![0.0; 3],
            write_count: vec![1.0, 0.0, 0.0],
            age: vec![0.0, 1.0, 3.0],
        }
    }

    fn at(item: usize, slot: usize) -> MemoryWrite {
        MemoryWrite { item, slot }
    }

    #[test]
    fn items_go_to_the_least_written_slots_and_move_their_means() {
        let mut m = memory();
        assert_eq!(m.write(&[10.0, 20.0, 30.0, 40.0], None, 0.25).unwrap(), [at(0, 1), at(1, 2)]);
        assert_eq!(m.mean, [1.0, 2.0, 4.75, 8.0, 6.75, 10.0]);
        assert_eq!((&m.write_count[..], &m.age[..]), (&[1.0; 3][..], &[0.0, 1.0, 3.0][..]));
        assert_eq!(m.quality, memory().quality);
        // All slots are equal now: the first one.
        assert_eq!(m.write(&[1.0, 2.0], None, 1.0).unwrap(), [at(0, 0)]);
        assert_eq!((&m.mean[..2], m.write_count[0]), (&[1.0, 2.0][..], 2.0));
    }

    #[test]
    fn of_more_items_than_slots_the_most_important_are_written() {
        let items: Vec<f32> = (0..8).map(|v| v as f32).collect();
        let mut m = memory();
        let written = m.write(&items, Some(&[0.5, 3.0, 0.5, 2.0]), 1.0).unwrap();
        assert_eq!(written, [at(1, 1), at(3, 2), at(0, 0)]);
        assert_eq!(m.mean, [0.0, 1.0, 2.0, 3.0, 6.0, 7.0]);
        assert_eq!(m.write_count, [2.0, 1.0, 1.0]);
        assert_eq!(memory().write(&items, None, 1.0).unwrap(), [at(0, 1), at(1, 2), at(2, 0)]);
        assert_eq!(memory().write(&[], None, 1.0).unwrap(), []);
    }

    #[test]
    fn a_refused_write_changes_nothing() {
        let mut m = memory();
        type Refused<'a> = (&'a [f32], Option<&'a [f32]>, f32, &'a str);
        let refused: [Refused; 6] = [
            (&[1.0; 3], None, 0.1, "rows of 2"),
            (&[1.0, f32::NAN], None, 0.1, "value 1 is NaN"),
            (&[1.0; 2], Some(&[1.0, 2.0]), 0.1, "2 values for 1 items"),
            (&[1.0; 2], Some(&[f32::NAN]), 0.1, "a number for each"),
            (&[1.0; 2], None, 1.5, "is 1.5"),
            (&[1.0; 2], None, f32::NAN, "is NaN"),
        ];
        for (items, importance, alpha, says) in refused {
            let error = m.write(items, importance, alpha).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(m, memory());
    }

    #[test]
    fn quality_moves_towards_success_once_a_slot() {
        let mut m = memory();
        m.update_quality(&[2, 0, 2], 0.0, 0.1).unwrap();
        m.update_quality(&[1], 1.0, 0.5).unwrap();
        let want = [0.9, 0.75, 0.225];
        assert!(m.quality.iter().zip(want).all(|(q, w)| (q - w).abs() < 1e-6), "{:?}", m.quality);
        for (slots, success, rate) in [(&[3][..], 0.5, 0.1), (&[0], 1.1, 0.1), (&[0], 0.5, -0.1), (&[0], f32::NAN, 0.1)]
        {
            assert!(matches!(m.update_quality(slots, success, rate), Err(Error::Argument { .. })));
        }
        assert!(m.quality.iter().zip(want).all(|(q, w)| (q - w).abs() < 1e-6), "{:?}", m.quality);
    }

    #[test]
    fn decay_ages_and_then_takes_quality_by_age() {
        let mut m = memory();
        m.decay(0.5).unwrap();
        assert_eq!(m.age, [1.0, 2.0, 4.0]);
        let want = [(-0.5f32).exp(), 0.5 * (-1f32).exp(), 0.25 * (-2f32).exp()];
        assert!(m.quality.iter().zip(want).all(|(q, w)| (q - w).abs() < 1e-6), "{:?}", m.quality);
        let mut new = EpisodicMemory { age: vec![0.0; 3], quality: vec![1.0; 3], ..memory() };
        (0..5).for_each(|_| new.decay(DECAY_RATE).unwrap());
        assert!(new.quality.iter().all(|q| (q - (-0.15f32).exp()).abs() < 1e-6), "{:?}", new.quality);
        new.renew(&[1]).unwrap();
        assert_eq!((new.age[1], new.quality[1], new.age[0]), (0.0, 1.0, 5.0));
        assert!(new.renew(&[3]).is_err() && new.decay(-1.0).is_err() && new.decay(f32::NAN).is_err());
    }

    #[test]
    fn statistics_count_and_average() {
        let mut m = memory();
        assert_eq!(m.statistics().evenness, None);
        m.count_reads(&[0, 1]);
        m.count_reads(&[1, 1, 0]);
        let s = m.statistics();
        assert_eq!((s.slots, s.written_slots, s.read_slots, s.writes, s.reads), (3, 1, 2, 1.0, 4.0));
        assert!((s.quality - 1.75 / 3.0).abs() < 1e-9 && (s.age - 4.0 / 3.0).abs() < 1e-9);
        assert!((s.length - (5f64.sqrt() + 5.0 + 1.0) / 3.0).abs() < 1e-6, "{}", s.length);
        assert!((s.evenness.unwrap() - 2f64.ln() / 3f64.ln()).abs() < 1e-9);
        m.count_reads(&[2]);
        m.count_reads(&[2]);
        assert!((m.statistics().evenness.unwrap() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn divergence_is_zero_for_a_standard_normal_and_its_formula_elsewhere() {
        let mut m = EpisodicMemory { mean: vec![0.0; 6], ..memory() };
        assert_eq!(m.divergence(), 0.0);
        (m.mean, m.logvar) = (vec![1.0, -2.0, 0.0, 0.0, 3.0, 2.0], 2f32.ln());
        assert!((m.divergence() - 0.5 * (2.0 + 3.0 - 1.0 - 2f64.ln())).abs() < 1e-6);
    }
}
