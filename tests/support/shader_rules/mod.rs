//! Forms that naga accepts and a compiler behind it refuses: FXC and DXC (HLSL), Tint (browsers).

mod uniform;

use naga::valid::{FunctionInfo, ModuleInfo};
use naga::{
    AddressSpace, Block, BuiltIn, Expression, Function, Handle, MathFunction, Module, ScalarKind, Statement,
    SubgroupOperation, TypeInner,
};

/// Where `clamp`, `min` and `max` of floats may drop NaN: shaders by the beginning of their names, and a function, or all.
const MAY_DROP_NAN: &[(&str, &str)] = &[
    // Those of shared/bounds.wgsl look at the bits themselves.
    ("", "bounded"),
    ("", "bounded4"),
    ("", "at_least"),
    ("", "tanh_of"),
    // The codes of a row with NaN are any: its scale is NaN.
    ("", "code_of"),
    ("", "codes_of"),
    // The largest of numbers that are all in e^(number − largest) as well.
    ("attention/attention", ""),
    ("", "choose"),
    ("", "max_of_lanes"),
    // Numbers that are not finite are seen as keys before.
    ("sample/", ""),
];

/// Fails with the first form of a variant of shader `name` that some compiler refuses.
///
/// `software`: only drivers that compute on the CPU get it, which are no DX12 ones, and read components as they like.
pub fn check(name: &str, module: &Module, info: &ModuleInfo, wgsl: &str, software: bool) -> Result<(), String> {
    built_ins(module)?;
    one_return(module)?;
    if !software {
        uniform::check(module)?;
    }
    let entries = module.entry_points.iter().enumerate().map(|(i, e)| (&e.function, info.get_entry_point(i)));
    for (function, info) in module.functions.iter().map(|(handle, f)| (f, &info[handle])).chain(entries) {
        computed_components(module, function, info, &function.body)?;
        if !software {
            computed_reads(module, function, info)?;
        }
        let own = function.name.as_deref().unwrap_or_default();
        if !MAY_DROP_NAN.iter().any(|(shader, f)| name.starts_with(shader) && (f.is_empty() || *f == own)) {
            dropped_nan(module, function, info)?;
        }
    }
    let code: Vec<&str> = wgsl.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    literals(&code.join("\n"))?;
    brackets(&code.join("\n"))
}

/// DXC: built-ins of subgroups are parameters of their own; inside a struct, naga gives them no semantic.
fn built_ins(module: &Module) -> Result<(), String> {
    let of_subgroups =
        [BuiltIn::NumSubgroups, BuiltIn::SubgroupId, BuiltIn::SubgroupSize, BuiltIn::SubgroupInvocationId];
    for argument in module.entry_points.iter().flat_map(|e| &e.function.arguments) {
        let TypeInner::Struct { members, .. } = &module.types[argument.ty].inner else { continue };
        for member in members {
            if matches!(member.binding, Some(naga::Binding::BuiltIn(b)) if of_subgroups.contains(&b)) {
                return Err(format!("{:?} is a subgroup built-in inside a struct", member.name));
            }
        }
    }
    Ok(())
}

/// FXC: a component of a vector is read at a place that is known while compiling, else as a dot product with a unit vector,
/// which any NaN in the vector comes through; and no mask is chosen among two by `select`, whose bits FXC mixes up.
fn computed_reads(module: &Module, function: &Function, info: &FunctionInfo) -> Result<(), String> {
    let mask = |e| match function.expressions[e] {
        Expression::Literal(naga::Literal::U32(v)) => v > 0xff && v != u32::MAX,
        _ => false,
    };
    for (_, expression) in function.expressions.iter() {
        let of_vector = match *expression {
            Expression::Access { base, .. } => match *info[base].ty.inner_with(&module.types) {
                TypeInner::Vector { .. } => true,
                TypeInner::Pointer { base, space: AddressSpace::Function | AddressSpace::Private } => {
                    matches!(module.types[base].inner, TypeInner::Vector { .. })
                }
                _ => false,
            },
            Expression::Select { accept, reject, .. } if mask(accept) && mask(reject) => {
                return Err(format!("{:?} selects one of two masks", function.name));
            }
            _ => false,
        };
        if of_vector {
            return Err(format!("{:?} reads a component of a vector at a computed place", function.name));
        }
    }
    Ok(())
}

/// FXC: a function that feeds the bound of a loop has one return. Where one returns early, FXC takes its value for one that may
/// not be set, and so the bound for one that threads may see differently.
fn one_return(module: &Module) -> Result<(), String> {
    let entries = module.entry_points.iter().map(|e| &e.function);
    for function in module.functions.iter().map(|(_, f)| f).chain(entries) {
        for called in feeding(function, &ends_of_loops(&function.body)) {
            several_returns(module, called)?;
        }
    }
    Ok(())
}

/// Fails if a function, or one that its result comes from, has several returns.
fn several_returns(module: &Module, called: Handle<Function>) -> Result<(), String> {
    let function = &module.functions[called];
    let mut values = Vec::new();
    visit(&function.body, &mut |statement| {
        if let Statement::Return { value } = statement {
            values.extend(*value);
        }
    });
    if values.len() > 1 {
        return Err(format!("{:?} feeds the bound of a loop and has {} returns", function.name, values.len()));
    }
    feeding(function, &values).into_iter().try_for_each(|called| several_returns(module, called))
}

/// Conditions by which loops end.
fn ends_of_loops(body: &Block) -> Vec<Handle<Expression>> {
    let mut all = Vec::new();
    visit(body, &mut |statement| {
        let Statement::Loop { body, break_if, .. } = statement else { return };
        all.extend(*break_if);
        for statement in body.iter() {
            let Statement::If { condition, accept, reject } = statement else { continue };
            if [accept, reject].iter().any(|b| b.iter().any(|s| matches!(s, Statement::Break))) {
                all.push(*condition);
            }
        }
    });
    all
}

/// Functions whose results some expressions are made of, through variables of the function too.
fn feeding(function: &Function, expressions: &[Handle<Expression>]) -> Vec<Handle<Function>> {
    let (mut left, mut seen, mut calls) = (expressions.to_vec(), std::collections::BTreeSet::new(), Vec::new());
    while let Some(handle) = left.pop() {
        if !seen.insert(handle) {
            continue;
        }
        let expression = &function.expressions[handle];
        left.extend(operands(expression));
        visit(&function.body, &mut |statement| match statement {
            Statement::Call { function, result: Some(result), .. } if *result == handle => calls.push(*function),
            Statement::Store { pointer, value } if *pointer == handle => left.push(*value),
            _ => {}
        });
        if let Expression::LocalVariable(v) = expression {
            left.extend(function.local_variables[*v].init);
            let same = |e: &Expression| matches!(e, Expression::LocalVariable(other) if other == v);
            left.extend(function.expressions.iter().filter(|(_, e)| same(e)).map(|(handle, _)| handle));
        }
    }
    calls
}

/// Calls `f` with every statement of a block and of the blocks in it.
fn visit(block: &Block, f: &mut impl FnMut(&Statement)) {
    for statement in block.iter() {
        f(statement);
        inner(statement).into_iter().for_each(|block| visit(block, f));
    }
}

/// The expressions that one is made of.
fn operands(expression: &Expression) -> Vec<Handle<Expression>> {
    match expression {
        Expression::Access { base, index } => vec![*base, *index],
        Expression::AccessIndex { base, .. } => vec![*base],
        Expression::Splat { value, .. } => vec![*value],
        Expression::Swizzle { vector, .. } => vec![*vector],
        Expression::Compose { components, .. } => components.clone(),
        Expression::Load { pointer } => vec![*pointer],
        Expression::Unary { expr, .. } | Expression::As { expr, .. } => vec![*expr],
        Expression::Binary { left, right, .. } => vec![*left, *right],
        Expression::Select { condition, accept, reject } => vec![*condition, *accept, *reject],
        Expression::Relational { argument, .. } => vec![*argument],
        Expression::Math { arg, arg1, arg2, arg3, .. } => {
            [Some(*arg), *arg1, *arg2, *arg3].into_iter().flatten().collect()
        }
        _ => vec![],
    }
}

/// NaN reaches the check that must see it: bounds and maxima of floats are those of shared/bounds.wgsl, which keep it.
fn dropped_nan(module: &Module, function: &Function, info: &FunctionInfo) -> Result<(), String> {
    let float = |e: Handle<Expression>| info[e].ty.inner_with(&module.types).scalar_kind() == Some(ScalarKind::Float);
    let bounds = function.expressions.iter().any(|(_, e)| match *e {
        Expression::Math { fun: MathFunction::Clamp | MathFunction::Min | MathFunction::Max, arg, .. } => float(arg),
        _ => false,
    });
    if bounds || of_subgroups(&function.body, &float) {
        return Err(format!("{:?} has a clamp, min or max of floats, which may drop NaN", function.name));
    }
    Ok(())
}

/// Whether a block has a maximum or minimum over a subgroup of what `float` says.
fn of_subgroups(block: &Block, float: &impl Fn(Handle<Expression>) -> bool) -> bool {
    block.iter().any(|statement| match statement {
        Statement::SubgroupCollectiveOperation { op, argument, .. } => {
            matches!(op, SubgroupOperation::Max | SubgroupOperation::Min) && float(*argument)
        }
        _ => inner(statement).into_iter().any(|block| of_subgroups(block, float)),
    })
}

/// The blocks of a statement.
fn inner(statement: &Statement) -> Vec<&Block> {
    match statement {
        Statement::Block(block) => vec![block],
        Statement::If { accept, reject, .. } => vec![accept, reject],
        Statement::Loop { body, continuing, .. } => vec![body, continuing],
        Statement::Switch { cases, .. } => cases.iter().map(|c| &c.body).collect(),
        _ => vec![],
    }
}

/// FXC: a component of a variable of a function or thread is written at a place that is known while compiling.
fn computed_components(module: &Module, function: &Function, info: &FunctionInfo, block: &Block) -> Result<(), String> {
    for statement in block.iter() {
        for block in inner(statement) {
            computed_components(module, function, info, block)?;
        }
        let Statement::Store { pointer, .. } = statement else { continue };
        let Expression::Access { base, .. } = function.expressions[*pointer] else { continue };
        let of_vector = match *info[base].ty.inner_with(&module.types) {
            TypeInner::Pointer { base, space: AddressSpace::Function | AddressSpace::Private } => {
                matches!(module.types[base].inner, TypeInner::Vector { .. })
            }
            _ => false,
        };
        if of_vector {
            return Err(format!("{:?} writes a component of a vector at a computed place", function.name));
        }
    }
    Ok(())
}

/// Tint: a literal is not above the largest f32, not even by less than half a step.
fn literals(code: &str) -> Result<(), String> {
    let words = code.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_'));
    for word in words.filter(|w| w.starts_with(|c: char| c.is_ascii_digit()) && w.contains(['.', 'e'])) {
        if word.trim_end_matches('f').parse().is_ok_and(|v: f64| v > f64::from(f32::MAX)) {
            return Err(format!("{word} is above the largest f32"));
        }
    }
    Ok(())
}

/// Tint: a shift stands in brackets beside `&`, `|` and `^`. Spaces tell a shift from the end of `bitcast<vec4<u32>>`.
fn brackets(code: &str) -> Result<(), String> {
    let code = code.replace("&&", ",,").replace("||", ",,");
    let mut levels = vec![(false, false)]; // a shift, a mask since the last separator, for each open bracket
    let mut chars = code.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|&(_, c)| c);
        let level = levels.last_mut().ok_or("brackets do not match")?;
        match c {
            '(' | '[' => levels.push((false, false)),
            ')' | ']' => drop(levels.pop()),
            ',' | ';' | '{' | '}' | '=' => *level = (false, false),
            '<' | '>' if next == Some(c) && code[..at].ends_with(char::is_whitespace) => {
                level.0 = true;
                chars.next();
            }
            '&' | '|' | '^' if next != Some('=') => level.1 = true,
            _ => {}
        }
        if levels.last() == Some(&(true, true)) {
            let line = code[..at].rfind('\n').map_or(0, |start| start + 1);
            let text = code[line..].lines().next().unwrap_or_default();
            return Err(format!("a shift and a mask without brackets: {}", text.trim()));
        }
    }
    Ok(())
}
