//! Forms that naga accepts and a compiler behind it refuses: FXC and DXC (HLSL), Tint (browsers).

use naga::valid::{FunctionInfo, ModuleInfo};
use naga::{AddressSpace, Block, BuiltIn, Expression, Function, Module, Statement, TypeInner};

/// Fails with the first form of a variant that some compiler refuses.
///
/// `software`: only drivers that compute on the CPU get it, which are no DX12 ones, and read components as they like.
pub fn check(module: &Module, info: &ModuleInfo, wgsl: &str, software: bool) -> Result<(), String> {
    built_ins(module)?;
    for (handle, function) in module.functions.iter() {
        computed_components(module, function, &info[handle], &function.body)?;
        if !software {
            computed_reads(module, function, &info[handle])?;
        }
    }
    for (i, entry) in module.entry_points.iter().enumerate() {
        computed_components(module, &entry.function, info.get_entry_point(i), &entry.function.body)?;
        if !software {
            computed_reads(module, &entry.function, info.get_entry_point(i))?;
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

/// FXC: a component of a variable of a function or thread is written at a place that is known while compiling.
fn computed_components(module: &Module, function: &Function, info: &FunctionInfo, block: &Block) -> Result<(), String> {
    for statement in block.iter() {
        let inner: Vec<&Block> = match statement {
            Statement::Block(block) => vec![block],
            Statement::If { accept, reject, .. } => vec![accept, reject],
            Statement::Loop { body, continuing, .. } => vec![body, continuing],
            Statement::Switch { cases, .. } => cases.iter().map(|c| &c.body).collect(),
            _ => vec![],
        };
        for block in inner {
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
