//! Pickle, the format inside torch files, first part: the machine that runs the opcodes.
//!
//! A pickle is read as data: values are built, nothing is imported or called. Only the opcodes that `torch.save` writes are
//! known. Values lie in one list and refer to each other by index, so a deep or cyclic pickle does not recurse, neither
//! when it is read nor when it is dropped, and a budget bounds all memory.

use std::collections::HashMap;

use crate::files::checkpoint::budget::FileBudget;
use crate::files::checkpoint::pickle_calls;
use crate::files::checkpoint::pickle_calls::Made;
use crate::files::checkpoint::pickle_objects::{Global, Id, Node, Pickle};

/// About how many bytes a value takes, and being memorised or an item of another one: vectors grow by doubling.
const VALUE_BYTES: usize = 2 * size_of::<Node>() + 16;
const MEMO_BYTES: usize = 32;
const ITEM_BYTES: usize = 24;

/// Why a pickle cannot be read, and the offset of the opcode in it.
#[derive(Debug)]
pub(crate) struct Malformed {
    pub(crate) offset: usize,
    pub(crate) problem: String,
}

/// Reads one pickle from the start of `input`; its values are taken off `budget`.
pub(crate) fn load<'a>(input: &'a [u8], budget: &mut FileBudget) -> Result<Pickle<'a>, Malformed> {
    let mut machine = Machine {
        input,
        budget,
        at: 0,
        op_at: 0,
        pickle: Pickle { nodes: Vec::new(), root: 0, states: HashMap::new() },
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    machine.run()?;
    Ok(machine.pickle)
}

/// The stack machine that a pickle is a program for.
struct Machine<'a, 'b> {
    input: &'a [u8],
    budget: &'b mut FileBudget,
    at: usize,
    op_at: usize,
    pickle: Pickle<'a>,
    stack: Vec<Id>,
    /// Stack heights, one per open mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

type Step<T = ()> = Result<T, Malformed>;

impl<'a> Machine<'a, '_> {
    fn run(&mut self) -> Step {
        loop {
            self.op_at = self.at;
            let [op] = self.take()?;
            if op == b'.' {
                self.pickle.root = self.pop()?;
                return Ok(());
            }
            match self.scalar(op)? {
                Some(node) => self.push(node)?,
                None => self.structure(op)?,
            }
        }
    }

    /// Opcodes that only push a value of their own.
    fn scalar(&mut self, op: u8) -> Step<Option<Node<'a>>> {
        Ok(Some(match op {
            b'N' => Node::Other("None"),
            0x88 | 0x89 => Node::Bool(op == 0x88),
            b'K' => Node::Int(i64::from(u8::from_le_bytes(self.take()?))),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.take()?))),
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.take()?))),
            0x8a => self.long()?,
            b'G' => Node::Float(f64::from_be_bytes(self.take()?)),
            b'X' | 0x8c | 0x8d => {
                let width = if op == b'X' {
                    4
                } else if op == 0x8c {
                    1
                } else {
                    8
                };
                Node::Str(self.text(width)?)
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let width = if op == b'B' {
                    4
                } else if op == b'C' {
                    1
                } else {
                    8
                };
                self.counted(width)?;
                Node::Other("bytes")
            }
            b'}' => Node::Dict(Vec::new()),
            b']' => Node::List(Vec::new()),
            b')' => Node::Tuple(Vec::new()),
            0x8f => Node::Other("a set"),
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                Node::Global(Global { module, name })
            }
            _ => return Ok(None),
        }))
    }

    /// Opcodes that work on the stack.
    fn structure(&mut self, op: u8) -> Step {
        match op {
            0x80 => self.protocol(),
            0x95 => self.take::<8>().map(|_| ()),
            b'(' => {
                self.marks.push(self.stack.len());
                self.spend(ITEM_BYTES)
            }
            b'0' => self.pop().map(|_| ()),
            b'1' => self.pop_mark().map(|_| ()),
            b'2' => {
                let top = self.top()?;
                self.push_again(top)
            }
            b't' | 0x85..=0x87 => {
                let items = if op == b't' { self.pop_mark()? } else { self.pop_many(usize::from(op - 0x84))? };
                self.push(Node::Tuple(items))
            }
            0x91 => {
                self.pop_mark()?;
                self.push(Node::Other("a set"))
            }
            b'a' | b'e' | 0x90 => {
                let items = if op == b'a' { self.pop_many(1)? } else { self.pop_mark()? };
                self.append(items)
            }
            b's' | b'u' => {
                let items = if op == b's' { self.pop_many(2)? } else { self.pop_mark()? };
                self.set_items(&items)
            }
            b'q' | b'r' | 0x94 => self.memorise(op),
            b'h' | b'j' => self.recall(op),
            0x93 => self.stack_global(),
            b'R' | 0x81 | 0x92 => self.call(op),
            b'b' => self.fill(),
            b'Q' => self.persistent(),
            _ => self.fail(format!("opcode {op:#04x} is not one that torch.save writes")),
        }
    }

    fn protocol(&mut self) -> Step {
        match self.take()? {
            [2..=5] => Ok(()),
            [other] => self.fail(format!("pickle protocol {other}, 2 to 5 can be read")),
        }
    }

    fn append(&mut self, items: Vec<Id>) -> Step {
        let target = self.top()?;
        match self.pickle.nodes.get_mut(target as usize) {
            Some(Node::List(list)) => list.extend(items),
            Some(Node::Object(_) | Node::Other(_)) => {}
            _ => return self.fail(format!("items are appended to {}", self.pickle.node(target))),
        }
        Ok(())
    }

    /// BUILD: an object's state, which is kept beside it.
    fn fill(&mut self) -> Step {
        let (state, target) = (self.pop()?, self.top()?);
        if matches!(self.pickle.node(target), Node::Object(_)) {
            self.pickle.states.insert(target, state);
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Step {
        let target = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return self.fail("a key without a value");
        }
        match self.pickle.nodes.get_mut(target as usize) {
            Some(Node::Dict(dict)) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Some(Node::Object(_)) => {}
            _ => return self.fail(format!("items are set on {}", self.pickle.node(target))),
        }
        Ok(())
    }

    fn memorise(&mut self, op: u8) -> Step {
        let index = match op {
            0x94 => self.memo.len() as u32,
            _ => self.memo_index(op == b'q')?,
        };
        let top = self.top()?;
        if self.memo.insert(index, top).is_none() {
            self.spend(MEMO_BYTES)?;
        }
        Ok(())
    }

    fn recall(&mut self, op: u8) -> Step {
        let index = self.memo_index(op == b'h')?;
        match self.memo.get(&index) {
            Some(&id) => self.push_again(id),
            None => self.fail(format!("nothing was memorised as {index}")),
        }
    }

    fn memo_index(&mut self, short: bool) -> Step<u32> {
        Ok(if short { u32::from(u8::from_le_bytes(self.take()?)) } else { u32::from_le_bytes(self.take()?) })
    }

    fn stack_global(&mut self) -> Step {
        let (name, module) = (self.pop()?, self.pop()?);
        match (self.pickle.node(module), self.pickle.node(name)) {
            (&Node::Str(module), &Node::Str(name)) => self.push(Node::Global(Global { module, name })),
            _ => self.fail("a global whose name is not a string"),
        }
    }

    /// REDUCE, NEWOBJ and NEWOBJ_EX: what a known global makes of its arguments, else an opaque object.
    fn call(&mut self, op: u8) -> Step {
        if op == 0x92 {
            self.pop()?;
        }
        let (args, callee) = (self.pop()?, self.pop()?);
        let global = match *self.pickle.node(callee) {
            Node::Global(global) => global,
            Node::Object(global) => return self.push(Node::Object(global)),
            _ => return self.fail(format!("{} is called", self.pickle.node(callee))),
        };
        let Node::Tuple(args) = self.pickle.node(args) else {
            return self.fail(format!("{global} is called with {}", self.pickle.node(args)));
        };
        match pickle_calls::call(&self.pickle, global, args) {
            Ok(Made::New(node)) => self.push(node),
            Ok(Made::Argument(id)) => self.push_again(id),
            Err(problem) => self.fail(problem),
        }
    }

    fn persistent(&mut self) -> Step {
        let id = self.pop()?;
        match pickle_calls::storage(&self.pickle, id) {
            Ok(storage) => self.push(storage),
            Err(problem) => self.fail(problem),
        }
    }

    fn long(&mut self) -> Step<Node<'a>> {
        let bytes = self.counted(1)?;
        if bytes.len() > 8 {
            return Ok(Node::Other("an int of more than 64 bits"));
        }
        let negative = bytes.last().is_some_and(|&high| high >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        for (to, from) in wide.iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(Node::Int(i64::from_le_bytes(wide)))
    }

    /// Text after its length in bytes, itself `width` bytes long.
    fn text(&mut self, width: usize) -> Step<&'a str> {
        let bytes = self.counted(width)?;
        std::str::from_utf8(bytes).or_else(|error| self.fail(error))
    }

    fn counted(&mut self, width: usize) -> Step<&'a [u8]> {
        let length = self.slice(width)?.iter().rev().fold(0u64, |length, &byte| length << 8 | u64::from(byte));
        match usize::try_from(length) {
            Ok(length) => self.slice(length),
            Err(_) => self.fail(format!("a length of {length} bytes")),
        }
    }

    /// Text up to a newline.
    fn line(&mut self) -> Step<&'a str> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            return self.fail("a name without an end");
        };
        let line = self.slice(length)?;
        self.take::<1>()?;
        std::str::from_utf8(line).or_else(|error| self.fail(error))
    }

    fn take<const N: usize>(&mut self) -> Step<[u8; N]> {
        let bytes = self.slice(N)?;
        bytes.try_into().or_else(|_| self.fail("too few bytes"))
    }

    fn slice(&mut self, length: usize) -> Step<&'a [u8]> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let Some(bytes) = rest.get(..length) else {
            return self.fail(format!("is cut short: {length} more bytes are needed, there are {}", rest.len()));
        };
        self.at += length;
        Ok(bytes)
    }

    fn push(&mut self, node: Node<'a>) -> Step {
        self.spend(VALUE_BYTES)?;
        self.pickle.nodes.push(node);
        self.push_again(self.pickle.nodes.len() as Id - 1)
    }

    /// Pushes a value that is there already.
    fn push_again(&mut self, id: Id) -> Step {
        self.stack.push(id);
        self.spend(ITEM_BYTES)
    }

    fn spend(&mut self, bytes: usize) -> Step {
        let spent = self.budget.take(bytes as u64);
        spent.or_else(|all| {
            self.fail(format!("its values take more than {all} bytes, which no file of this size needs"))
        })
    }

    fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => self.fail("a value is needed, the stack is empty"),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Step<Vec<Id>> {
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= self.floor() => Ok(self.stack.drain(start..).collect()),
            _ => self.fail(format!("{count} values are needed, the stack has fewer")),
        }
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.drain(mark..).collect()),
            _ => self.fail("a mark is needed, there is none"),
        }
    }

    /// The stack height below which the innermost mark protects values.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn fail<T>(&self, problem: impl ToString) -> Step<T> {
        Err(Malformed { offset: self.op_at, problem: problem.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(input: &[u8]) -> Result<Pickle<'_>, Malformed> {
        super::load(input, &mut FileBudget::of_file(input.len()))
    }

    /// A pickle that calls `module.name` with one string.
    fn call(module: &str, name: &str) -> Vec<u8> {
        format!("\u{0}c{module}\n{name}\n\u{8c}\u{5}hello\u{85}R.").chars().skip(1).map(|c| c as u8).collect()
    }

    fn refusal(input: &[u8]) -> (usize, String) {
        let error = load(input).unwrap_err();
        (error.offset, error.problem)
    }

    #[test]
    fn a_call_of_an_unknown_global_is_an_opaque_object() {
        let input = call("posix", "system");
        assert_eq!(load(&input).unwrap().root().to_string(), "an object of posix.system");
    }

    #[test]
    fn calls_and_states_of_opaque_objects_stay_opaque() {
        let mut input = call("a", "b");
        input.pop();
        input.extend_from_slice(b")R}bK\x01a(K\x01K\x02u.");
        assert_eq!(load(&input).unwrap().root().to_string(), "an object of a.b");
    }

    #[test]
    fn settings_are_those_of_a_dict_or_of_what_an_object_was_filled_with() {
        let state = b"}(X\x01\0\0\0aK\x07X\x01\0\0\0bG\x3f\xe0\0\0\0\0\0\0X\x01\0\0\0c\x88X\x01\0\0\0dX\x01\0\0\0eX\x01\0\0\0fNu";
        let object = [&b"cm\nC\n)\x81"[..], state, b"b."].concat();
        let want = serde_json::json!({"a": 7, "b": 0.5, "c": true, "d": "e"});
        for input in [object, [&state[..], b"."].concat()] {
            let pickle = load(&input).unwrap();
            assert_eq!(serde_json::Value::Object(pickle.settings(pickle.root).unwrap()), want);
        }
        assert!(load(b"K\x01.").unwrap().settings(0).is_none());
        let long = [&b"}(X\x01\0\0\0aX\0\x20\0\0"[..], &[b'x'; 0x2000], b"u."].concat();
        assert!(load(&long).unwrap().settings(0).unwrap().is_empty());
    }

    #[test]
    fn integers_of_every_width_are_read() {
        let root = |input: &[u8]| load(input).unwrap().root().to_string();
        assert_eq!(root(b"K\xff."), "the int 255");
        assert_eq!(root(b"M\xff\xff."), "the int 65535");
        assert_eq!(root(b"J\xff\xff\xff\xff."), "the int -1");
        assert_eq!(root(b"\x8a\x00."), "the int 0");
        assert_eq!(root(b"\x8a\x01\xfe."), "the int -2");
        assert_eq!(root(b"\x8a\x05\x00\x00\x00\x00\x01."), "the int 4294967296");
        let huge = [&b"\x8a\xff"[..], &[7; 255], b"."].concat();
        assert_eq!(root(&huge), "an int of more than 64 bits");
    }

    #[test]
    fn a_dict_keeps_its_pairs_and_memorised_values() {
        let input = b"\x80\x04\x95\0\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94K\x01\x8c\x01b(h\x01K\x02tu.";
        let pickle = load(input).unwrap();
        let Node::Dict(pairs) = pickle.root() else { panic!("{}", pickle.root()) };
        assert!(matches!(pickle.node(pairs[0].0), Node::Str("a")));
        let Node::Tuple(items) = pickle.node(pairs[1].1) else { panic!() };
        assert!(matches!(pickle.node(items[0]), Node::Str("a")));
    }

    #[test]
    fn malformed_pickles_name_the_offset() {
        assert_eq!(refusal(b""), (0, "is cut short: 1 more bytes are needed, there are 0".into()));
        assert_eq!(refusal(b"NI1\n.").0, 1, "protocol 0 opcodes are unknown");
        assert_eq!(refusal(b"\x80\x06.").0, 0);
        assert_eq!(refusal(b"N(0.").0, 2, "a mark protects what is below it");
        assert_eq!(refusal(b"t.").0, 0);
        assert_eq!(refusal(b"h\x07.").0, 0);
        assert_eq!(refusal(b"}K\x01(K\x01u.").0, 6, "a key without a value");
        assert_eq!(refusal(b"K\x01K\x01a.").0, 4);
        assert_eq!(refusal(b"NQ.").0, 1);
        assert_eq!(refusal(b"X\xff\xff\xff\xffa.").0, 0, "a string longer than the file");
        assert_eq!(refusal(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.").0, 0);
        assert_eq!(refusal(b"X\x01\0\0\0\xff.").0, 0, "text that is not UTF-8");
        assert_eq!(refusal(b"cos\nsystem").0, 0);
    }

    #[test]
    fn deep_and_cyclic_pickles_neither_recurse_nor_overflow() {
        let deep = [&b"]".repeat(300_000)[..], &b"a".repeat(299_999), b"."].concat();
        assert_eq!(load(&deep).unwrap().root().to_string(), "a list");
        let cyclic = b"]q\0h\0a.";
        assert_eq!(load(cyclic).unwrap().root().to_string(), "a list");
    }

    #[test]
    fn a_bomb_ends_at_the_budget() {
        let values = [&b"N".repeat(1_000_000)[..], b"."].concat();
        assert!(refusal(&values).1.contains("no file of this size needs"));
        let memo: Vec<u8> = (0..2_000_000u32).flat_map(|i| [&b"r"[..], &i.to_le_bytes()].concat()).collect();
        assert!(refusal(&[&b"]"[..], &memo, b"."].concat()).1.contains("no file of this size needs"));
        // The stack is high once; the tuples that follow must not each hold that much.
        let tuples = [&b"("[..], &b"N".repeat(100_000), b"1", &b"(t".repeat(100_000), b"."].concat();
        assert!(load(&tuples).is_ok());
    }
}
