//! The shader preprocessor: `#import`, `#ifdef` / `#else` / `#endif`, `#bind`; everything else is WGSL.
//!
//! * `#import NAME` inserts `shaders/shared/NAME.wgsl`, once.
//! * `#ifdef NAME` keeps the lines up to `#else` or `#endif` where the define is set; blocks nest.
//! * `#bind var<…> …` becomes `@group(0) @binding(n) var<…> …` with n counting from 2: 0 is the step, 1 the params.
//!
//! Unknown imports, unknown defines, unknown directives and unbalanced blocks are errors.

use crate::error::{Error, Result};
use crate::plan::Source;

/// The files that `#import` finds.
const SHARED: &[(&str, &str)] = &[
    ("attention", include_str!("../../shaders/shared/attention.wgsl")),
    ("bit_linear", include_str!("../../shaders/shared/bit_linear.wgsl")),
    ("bit_linear_codes", include_str!("../../shaders/shared/bit_linear_codes.wgsl")),
    ("bounds", include_str!("../../shaders/shared/bounds.wgsl")),
    ("byte_dots", include_str!("../../shaders/shared/byte_dots.wgsl")),
    ("choose_experts", include_str!("../../shaders/shared/choose_experts.wgsl")),
    ("code_pairs", include_str!("../../shaders/shared/code_pairs.wgsl")),
    ("column_blocks", include_str!("../../shaders/shared/column_blocks.wgsl")),
    ("gated", include_str!("../../shaders/shared/gated.wgsl")),
    ("group_codes", include_str!("../../shaders/shared/group_codes.wgsl")),
    ("group_matmul", include_str!("../../shaders/shared/group_matmul.wgsl")),
    ("group_matvec", include_str!("../../shaders/shared/group_matvec.wgsl")),
    ("group_stack", include_str!("../../shaders/shared/group_stack.wgsl")),
    ("half_floats", include_str!("../../shaders/shared/half_floats.wgsl")),
    ("halves", include_str!("../../shaders/shared/halves.wgsl")),
    ("kv_chunks", include_str!("../../shaders/shared/kv_chunks.wgsl")),
    ("lookup_tables", include_str!("../../shaders/shared/lookup_tables.wgsl")),
    ("matmul", include_str!("../../shaders/shared/matmul.wgsl")),
    ("matmul_factors", include_str!("../../shaders/shared/matmul_factors.wgsl")),
    ("new_row", include_str!("../../shaders/shared/new_row.wgsl")),
    ("queries", include_str!("../../shaders/shared/queries.wgsl")),
    ("reduce", include_str!("../../shaders/shared/reduce.wgsl")),
    ("route_experts", include_str!("../../shaders/shared/route_experts.wgsl")),
    ("stack", include_str!("../../shaders/shared/stack.wgsl")),
    ("step", include_str!("../../shaders/shared/step.wgsl")),
    ("subgroup_lanes", include_str!("../../shaders/shared/subgroup_lanes.wgsl")),
    ("ternary", include_str!("../../shaders/shared/ternary.wgsl")),
    ("ternary_blocks", include_str!("../../shaders/shared/ternary_blocks.wgsl")),
    ("ternary_matvec", include_str!("../../shaders/shared/ternary_matvec.wgsl")),
    ("ternary_shares", include_str!("../../shaders/shared/ternary_shares.wgsl")),
    ("values", include_str!("../../shaders/shared/values.wgsl")),
    ("vectors", include_str!("../../shaders/shared/vectors.wgsl")),
    ("vec4s_per_thread", include_str!("../../shaders/shared/vec4s_per_thread.wgsl")),
    ("workgroup_totals", include_str!("../../shaders/shared/workgroup_totals.wgsl")),
];

/// Defines that every kernel may get, whether it tests them or not.
const COMMON_DEFINES: &[&str] = &["SUBGROUPS", "DOT4", "SOFTWARE_SUBGROUPS"];

/// First number that `#bind` gives.
const FIRST_BINDING: u32 = 2;

/// A shader after preprocessing.
#[derive(Debug)]
pub struct Expanded {
    /// Plain WGSL.
    pub wgsl: String,
    /// For each line of it, the file (`norm/rms_norm.wgsl`, `shared/step.wgsl`) and the line there, from 1.
    pub origin: Vec<(String, usize)>,
}

struct Expansion<'a> {
    defines: &'a [&'a str],
    mentioned: Vec<String>,
    imported: Vec<String>,
    next_binding: u32,
    out: Expanded,
}

/// Expands a shader for a set of defines.
///
/// # Errors
/// [`Error::Format`] with file and line for anything that the preprocessor does not know.
pub fn expand(source: Source, defines: &[&str]) -> Result<Expanded> {
    let out = Expanded { wgsl: String::new(), origin: Vec::new() };
    let mut all = Expansion { defines, mentioned: vec![], imported: vec![], next_binding: FIRST_BINDING, out };
    all.file(&format!("{}.wgsl", source.name), source.text)?;
    for define in defines {
        if !COMMON_DEFINES.contains(define) && !all.mentioned.iter().any(|m| m == define) {
            return Err(Error::format(format!("{}.wgsl", source.name), format!("no #ifdef asks for {define}")));
        }
    }
    Ok(all.out)
}

/// An open `#ifdef`.
struct Block {
    line: usize,
    /// Whether the enclosing block is kept.
    outer: bool,
    condition: bool,
    in_else: bool,
}

impl Block {
    fn kept(&self) -> bool {
        self.outer && self.condition != self.in_else
    }
}

impl Expansion<'_> {
    fn file(&mut self, name: &str, text: &str) -> Result<()> {
        let mut blocks: Vec<Block> = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let at = i + 1;
            let fail = |problem: String| Err(Error::format(format!("{name}:{at}"), problem));
            let kept = blocks.last().is_none_or(Block::kept);
            let Some(directive) = line.trim_start().strip_prefix('#') else {
                if kept {
                    self.emit(line, name, at);
                }
                continue;
            };
            let (word, rest) = directive.split_once(' ').unwrap_or((directive, ""));
            let rest = rest.trim();
            match word.trim() {
                "ifdef" if !rest.is_empty() => {
                    self.mentioned.push(rest.to_owned());
                    let condition = self.defines.contains(&rest);
                    blocks.push(Block { line: at, outer: kept, condition, in_else: false });
                }
                "else" => match blocks.last_mut() {
                    Some(block) if !block.in_else => block.in_else = true,
                    _ => return fail("#else without #ifdef".into()),
                },
                "endif" => {
                    if blocks.pop().is_none() {
                        return fail("#endif without #ifdef".into());
                    }
                }
                "import" if kept => self.import(name, at, rest)?,
                "bind" if kept => {
                    let binding = format!("@group(0) @binding({}) {rest}", self.next_binding);
                    self.next_binding += 1;
                    self.emit(&binding, name, at);
                }
                "import" | "bind" => {}
                other => return fail(format!("unknown directive #{other}")),
            }
        }
        match blocks.pop() {
            Some(block) => Err(Error::format(format!("{name}:{}", block.line), "#ifdef without #endif")),
            None => Ok(()),
        }
    }

    fn import(&mut self, name: &str, at: usize, import: &str) -> Result<()> {
        if self.imported.iter().any(|i| i == import) {
            return Ok(());
        }
        let Some((_, text)) = SHARED.iter().find(|(n, _)| *n == import) else {
            return Err(Error::format(format!("{name}:{at}"), format!("shared/{import}.wgsl does not exist")));
        };
        self.imported.push(import.to_owned());
        self.file(&format!("shared/{import}.wgsl"), text)
    }

    fn emit(&mut self, line: &str, name: &str, at: usize) {
        self.out.wgsl.push_str(line);
        self.out.wgsl.push('\n');
        self.out.origin.push((name.to_owned(), at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &'static str, defines: &[&str]) -> Result<String> {
        expand(Source::new("t", text), defines).map(|e| e.wgsl)
    }

    #[test]
    fn blocks_nest_and_bindings_count() {
        let text = "#bind a\n#ifdef X\n#bind b\n#ifdef Y\ny\n#else\nnot y\n#endif\n#else\nnot x\n#endif\n#bind c";
        let [a, b, c] = ["@group(0) @binding(2) a\n", "@group(0) @binding(3) b\n", "c\n"];
        assert_eq!(run(text, &["X"]).unwrap(), format!("{a}{b}not y\n@group(0) @binding(4) {c}"));
        assert_eq!(run(text, &[]).unwrap(), format!("{a}not x\n@group(0) @binding(3) {c}"));
    }

    #[test]
    fn what_it_does_not_know_is_an_error() {
        for text in ["#import nothing", "#endif", "#else", "#ifdef X", "#define X", "#ifdef", "#ifdef X\n#else\n#else"]
        {
            assert!(run(text, &[]).is_err(), "{text}");
        }
        assert!(run("x", &["UNKNOWN"]).is_err());
    }

    #[test]
    fn only_shaders_of_this_crate_run_without_bounds_on_their_loops() {
        let own = crate::shader!("norm/rms_norm");
        assert!(own.is_own());
        let copy = Source::new(own.name, own.text);
        assert!(!copy.is_own());
        assert_ne!(own, copy, "they share no pipeline");
    }
}
