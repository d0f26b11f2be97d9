//! Tint: an operation of a subgroup stands where all of its lanes come along. What depends on the lane is followed through
//! expressions, variables and calls, as WGSL's analysis of uniformity does, coarser: by whole values and variables.

use std::collections::BTreeMap;

use naga::{
    AddressSpace, Binding, Block, BuiltIn, Expression, Function, FunctionArgument, GlobalVariable, Handle,
    LocalVariable, Module, Statement, StorageAccess, TypeInner,
};

/// What a value depends on: bit i for argument i of the function, and [`LANE`].
type Causes = u64;
/// The lane.
const LANE: Causes = 1 << 63;

/// What a call of a function means.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Summary {
    /// Causes of the result.
    result: Causes,
    /// Whether it has an operation of a subgroup.
    has_operation: bool,
    /// What decides, in it, whether one is reached.
    reached_by: Causes,
}

/// One function under analysis.
struct Analysis<'a> {
    module: &'a Module,
    function: &'a Function,
    done: &'a BTreeMap<Handle<Function>, Summary>,
    /// Variables of threads that depend on the lane.
    private: &'a mut BTreeMap<Handle<GlobalVariable>, Causes>,
    locals: BTreeMap<Handle<LocalVariable>, Causes>,
    /// Results of statements.
    results: BTreeMap<Handle<Expression>, Causes>,
    summary: Summary,
}

/// Fails with a function that reaches an operation of a subgroup by what depends on the lane.
pub fn check(module: &Module) -> Result<(), String> {
    let mut private = BTreeMap::new();
    loop {
        let before = private.clone();
        let mut done = BTreeMap::new();
        let mut found = Ok(());
        let callees = module.functions.iter().map(|(handle, f)| (Some(handle), f));
        for (handle, function) in callees.chain(module.entry_points.iter().map(|e| (None, &e.function))) {
            let summary = analyse(module, function, &done, &mut private);
            if summary.reached_by & LANE != 0 {
                found =
                    Err(format!("{:?} reaches an operation of a subgroup by what depends on the lane", function.name));
            }
            if let Some(handle) = handle {
                done.insert(handle, summary);
            }
        }
        if private == before {
            return found;
        }
    }
}

fn analyse(
    module: &Module,
    function: &Function,
    done: &BTreeMap<Handle<Function>, Summary>,
    private: &mut BTreeMap<Handle<GlobalVariable>, Causes>,
) -> Summary {
    let (locals, results, summary) = Default::default();
    let mut analysis = Analysis { module, function, done, private, locals, results, summary };
    // Until nothing new is found: a loop's end feeds its beginning.
    loop {
        let before = (analysis.locals.clone(), analysis.results.clone(), analysis.summary, analysis.private.clone());
        analysis.block(&function.body, 0);
        if before == (analysis.locals.clone(), analysis.results.clone(), analysis.summary, analysis.private.clone()) {
            return analysis.summary;
        }
    }
}

impl Analysis<'_> {
    /// What an argument depends on: of an entry point, the built-ins that differ among the lanes of a subgroup.
    fn argument(&self, i: u32, argument: &FunctionArgument) -> Causes {
        let uniform = [BuiltIn::WorkGroupId, BuiltIn::NumWorkGroups, BuiltIn::NumSubgroups, BuiltIn::SubgroupSize];
        let of = |binding: &Option<Binding>| match binding {
            Some(Binding::BuiltIn(b)) if !uniform.contains(b) && *b != BuiltIn::SubgroupId => LANE,
            _ => 0,
        };
        match &self.module.types[argument.ty].inner {
            _ if argument.binding.is_some() => of(&argument.binding),
            TypeInner::Struct { members, .. } if members.iter().any(|m| of(&m.binding) != 0) => LANE,
            _ => 1 << i,
        }
    }

    fn global(&self, handle: Handle<GlobalVariable>) -> Causes {
        match self.module.global_variables[handle].space {
            AddressSpace::WorkGroup => LANE,
            AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => LANE,
            AddressSpace::Private | AddressSpace::Function => self.private.get(&handle).copied().unwrap_or(0),
            _ => 0,
        }
    }

    /// Causes of an expression's value, or, of a pointer, of what it points to.
    fn causes(&self, handle: Handle<Expression>) -> Causes {
        match &self.function.expressions[handle] {
            Expression::FunctionArgument(i) => self.argument(*i, &self.function.arguments[*i as usize]),
            Expression::GlobalVariable(v) => self.global(*v),
            Expression::LocalVariable(v) => {
                let init = self.function.local_variables[*v].init;
                self.locals.get(v).copied().unwrap_or(0) | init.map_or(0, |e| self.causes(e))
            }
            Expression::CallResult(_) | Expression::SubgroupOperationResult { .. } => {
                self.results.get(&handle).copied().unwrap_or(0)
            }
            Expression::AtomicResult { .. } => LANE,
            // Literals, constants, overrides, lengths, ballots and what workgroupUniformLoad gives have no operands.
            other => super::operands(other).into_iter().fold(0, |all, e| all | self.causes(e)),
        }
    }

    fn store(&mut self, pointer: Handle<Expression>, causes: Causes) {
        match self.function.expressions[pointer] {
            Expression::Access { base, index } => self.store(base, causes | self.causes(index)),
            Expression::AccessIndex { base, .. } => self.store(base, causes),
            Expression::LocalVariable(v) => *self.locals.entry(v).or_default() |= causes,
            // Of which thread's argument it comes is not known any more.
            Expression::GlobalVariable(v) if causes != 0 => drop(self.private.insert(v, LANE)),
            _ => {}
        }
    }

    fn operation(&mut self, control: Causes) {
        self.summary.has_operation = true;
        self.summary.reached_by |= control;
    }

    /// Follows a block that is reached by `control`; returns what decides whether the statement behind it is reached.
    fn block(&mut self, block: &Block, mut control: Causes) -> Causes {
        for statement in block.iter() {
            match statement {
                Statement::Block(inner) => control |= self.block(inner, control),
                Statement::If { condition, accept, reject } => {
                    let inside = control | self.causes(*condition);
                    let left = self.block(accept, inside) | self.block(reject, inside);
                    // Behind it all lanes are together again, but for those that have left.
                    control |= if leaves(accept) || leaves(reject) { left } else { 0 };
                }
                Statement::Switch { selector, cases } => {
                    let inside = control | self.causes(*selector);
                    for case in cases {
                        let left = self.block(&case.body, inside);
                        control |= if leaves(&case.body) { left } else { 0 };
                    }
                }
                Statement::Loop { body, continuing, break_if } => {
                    // A lane that leaves the loop is not there in the next round.
                    let mut inside = control;
                    loop {
                        let mut after = self.block(body, inside) | self.block(continuing, inside);
                        after |= break_if.map_or(0, |e| self.causes(e));
                        if after | inside == inside {
                            break;
                        }
                        inside |= after;
                    }
                    control |= if returns(body) { inside } else { 0 };
                }
                Statement::Store { pointer, value } => self.store(*pointer, control | self.causes(*value)),
                Statement::Return { value: Some(value) } => self.summary.result |= control | self.causes(*value),
                Statement::Call { function, arguments, result } => {
                    let called = self.done.get(function).copied().unwrap_or_default();
                    let given: Vec<Causes> = arguments.iter().map(|&e| self.causes(e)).collect();
                    // An argument's own bit becomes what is given for it.
                    let here = |causes: Causes| {
                        let of = |(i, c): (usize, &Causes)| if causes >> i & 1 == 1 { *c } else { 0 };
                        (causes & LANE) | given.iter().enumerate().map(of).fold(0, |all, c| all | c)
                    };
                    if called.has_operation {
                        self.operation(control | here(called.reached_by));
                    }
                    if let Some(result) = result {
                        self.results.insert(*result, here(called.result));
                    }
                }
                Statement::SubgroupCollectiveOperation { .. } | Statement::SubgroupBallot { .. } => {
                    self.operation(control)
                }
                Statement::SubgroupGather { result, .. } => {
                    self.operation(control);
                    self.results.insert(*result, LANE);
                }
                _ => {}
            }
        }
        control
    }
}

/// Whether a lane may leave a loop or the function in a block, so that those behind it are without it.
fn leaves(block: &Block) -> bool {
    block.iter().any(|statement| match statement {
        Statement::Break | Statement::Continue | Statement::Return { .. } => true,
        // What leaves an inner loop stays in this one.
        Statement::Loop { body, .. } => returns(body),
        _ => super::inner(statement).into_iter().any(leaves),
    })
}

fn returns(block: &Block) -> bool {
    block.iter().any(|statement| match statement {
        Statement::Return { .. } => true,
        _ => super::inner(statement).into_iter().any(returns),
    })
}
