//! Ops applied one after the other on the CPU: the definition of a fused op.

use std::cell::RefCell;

use crate::plan::{Io, Op, Step};
use crate::tensor::Spec;
use crate::threads::ThreadPool;

thread_local! {
    /// Memory of results that are no longer needed: a decode step asks for the same sizes again and again.
    static SPARE: RefCell<Vec<Vec<u32>>> = const { RefCell::new(Vec::new()) };
}

/// Words for a result, whatever they held before.
fn words(n: usize) -> Vec<u32> {
    let mut words = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    words.resize(n, 0);
    words
}

/// The values of a fused op while its parts run: first its inputs, then each result.
pub struct Composed<'a> {
    step: &'a Step,
    fast: bool,
    threads: &'a ThreadPool,
    inputs: Vec<(&'a Spec, &'a [u32])>,
    results: Vec<(Spec, Vec<u32>)>,
}

impl<'a> Composed<'a> {
    /// The inputs of `io`; `fast` picks [`Op::cpu_fast`].
    pub fn new(step: &'a Step, fast: bool, io: &Io<'a>) -> Self {
        Composed { step, fast, threads: io.threads, inputs: io.inputs.clone(), results: Vec::new() }
    }

    /// Runs an op on earlier values, and returns the numbers of its results.
    ///
    /// # Panics
    /// If the values do not fit the op, which the fused op's own check of its inputs rules out.
    pub fn apply(&mut self, op: &dyn Op, values: &[usize]) -> Vec<usize> {
        let inputs: Vec<_> = values.iter().map(|&i| self.value(i)).collect();
        let specs: Vec<&Spec> = inputs.iter().map(|i| i.0).collect();
        let outputs = op.infer(&specs).unwrap_or_else(|e| panic!("{} in a fused op: {e}", op.name()));
        let mut words: Vec<Vec<u32>> = outputs.iter().map(|s| words(s.words())).collect();
        let outs = outputs.iter().zip(&mut words).map(|(s, w)| (s, &mut w[..])).collect();
        self.run(op, &mut Io { inputs, outputs: outs, threads: self.threads });
        let first = self.inputs.len() + self.results.len();
        self.results.extend(outputs.into_iter().zip(words));
        (first..self.inputs.len() + self.results.len()).collect()
    }

    /// Runs an op with one result of its own, whose other outputs are those of the fused op from number `states` on. Returns the
    /// number of the result.
    ///
    /// # Panics
    /// As [`Composed::apply`].
    pub fn apply_to_states(&mut self, op: &dyn Op, values: &[usize], io: &mut Io, states: usize) -> usize {
        let inputs: Vec<_> = values.iter().map(|&i| self.value(i)).collect();
        let specs: Vec<&Spec> = inputs.iter().map(|i| i.0).collect();
        let mut infer = op.infer(&specs).unwrap_or_else(|e| panic!("{} in a fused op: {e}", op.name()));
        let spec = infer.swap_remove(0);
        let mut words = words(spec.words());
        let states = io.outputs[states..].iter_mut().map(|(s, w)| (*s, &mut **w));
        let outputs = [(&spec, &mut words[..])].into_iter().chain(states).collect();
        self.run(op, &mut Io { inputs, outputs, threads: self.threads });
        self.results.push((spec, words));
        self.inputs.len() + self.results.len() - 1
    }

    /// Runs the last op into the fused op's first output, on earlier values with the states from number `states` on behind the
    /// first of them.
    pub fn finish_from_states(self, op: &dyn Op, values: [usize; 2], io: &mut Io, states: usize) {
        let (first, states) = io.outputs.split_at_mut(states);
        let states = states.iter().map(|(s, w)| (*s, &**w));
        let inputs = [self.value(values[0])].into_iter().chain(states).chain([self.value(values[1])]).collect();
        let outputs = first.iter_mut().map(|(s, w)| (*s, &mut **w)).collect();
        self.run(op, &mut Io { inputs, outputs, threads: self.threads });
    }

    /// Runs the last op on earlier values, into the outputs of the fused one.
    pub fn finish(self, op: &dyn Op, values: &[usize], io: &mut Io) {
        let inputs = values.iter().map(|&i| self.value(i)).collect();
        let outputs = io.outputs.iter_mut().map(|(s, w)| (*s, &mut **w)).collect();
        self.run(op, &mut Io { inputs, outputs, threads: self.threads });
    }

    fn value(&self, i: usize) -> (&Spec, &[u32]) {
        match self.inputs.get(i) {
            Some(&input) => input,
            None => {
                let (spec, words) = &self.results[i - self.inputs.len()];
                (spec, &words[..])
            }
        }
    }

    fn run(&self, op: &dyn Op, io: &mut Io) {
        if self.fast {
            op.cpu_fast(self.step, io);
        } else {
            op.cpu(self.step, io);
        }
    }
}

impl Drop for Composed<'_> {
    fn drop(&mut self) {
        SPARE.with_borrow_mut(|spare| spare.extend(self.results.drain(..).map(|(_, words)| words)));
    }
}
