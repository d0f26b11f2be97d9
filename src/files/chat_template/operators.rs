//! The operators of a template, as functions of values: with the results of the library's own instructions, and charged.

use std::iter::successors;

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, State, Value, tests};

use crate::files::chat_template::bounds::{ENTRY, RenderBudget, invalid};

/// Adds the functions that the replaced instructions call, and the tests that compare.
pub fn add(environment: &mut Environment<'_>, budget: &RenderBudget) {
    combinations(environment, budget);
    comparisons(environment, budget);
    let spent = budget.clone();
    environment.add_function("[:]", move |value: &Value, start: &Value, stop: &Value, step: &Value| {
        spent.slice(value, [start, stop, step])
    });
    let spent = budget.clone();
    environment.add_function("[]", move |items: Rest<Value>| -> Result<Value, Error> {
        let list = Value::from(items.0);
        spent.walk(&list)?;
        Ok(list)
    });
    let spent = budget.clone();
    environment.add_function("{}", move |items: Rest<Value>| -> Result<Value, Error> {
        let map: Value = items.0.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        spent.walk(&map)?;
        Ok(map)
    });
}

/// `+`, `*` and `~`.
fn combinations(environment: &mut Environment<'_>, budget: &RenderBudget) {
    type Combination = fn(&RenderBudget, &Value, &Value) -> Result<Value, Error>;
    let all: [(&'static str, Combination); 3] = [
        ("+", |budget, a, b| budget.sum(a, b)),
        ("*", |budget, a, b| budget.product(a, b)),
        ("~", |budget, a, b| {
            let (mut text, more) = (budget.text(a)?, budget.text(b)?);
            text.push_str(&more);
            Ok(Value::from(text))
        }),
    ];
    for (name, combine) in all {
        let spent = budget.clone();
        environment.add_function(name, move |a: &Value, b: &Value| combine(&spent, a, b));
    }
}

/// Tests that compare, by the sign that does the same.
const TESTS: [(&str, &[&str]); 6] = [
    ("==", &["eq", "equalto"]),
    ("!=", &["ne"]),
    ("<", &["lt", "lessthan"]),
    ("<=", &["le"]),
    (">", &["gt", "greaterthan"]),
    (">=", &["ge"]),
];

/// Comparisons, and `in`.
fn comparisons(environment: &mut Environment<'_>, budget: &RenderBudget) {
    type Comparison = fn(&Value, &Value) -> bool;
    let all: [(&'static str, Comparison); 6] = [
        ("==", |a, b| a == b),
        ("!=", |a, b| a != b),
        ("<", |a, b| a < b),
        ("<=", |a, b| a <= b),
        (">", |a, b| a > b),
        (">=", |a, b| a >= b),
    ];
    for (name, compare) in all {
        let spent = budget.clone();
        let function = move |a: &Value, b: &Value| -> Result<bool, Error> {
            spent.walk(a)?;
            spent.walk(b)?;
            Ok(compare(a, b))
        };
        environment.add_function(name, function.clone());
        let names = TESTS.iter().filter(|(sign, _)| *sign == name).flat_map(|(_, names)| *names);
        names.for_each(|test| environment.add_test(*test, function.clone()));
        environment.add_test(name, function);
    }
    let spent = budget.clone();
    let contained = move |state: &State, a: &Value, b: &Value| -> Result<bool, Error> {
        spent.walk(a)?;
        spent.walk(b)?;
        tests::is_in(state, a, b)
    };
    environment.add_function("in", contained.clone());
    environment.add_test("in", contained);
}

impl RenderBudget {
    fn sum(&self, a: &Value, b: &Value) -> Result<Value, Error> {
        let list = |v: &Value| matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable);
        if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
            self.charge(x.len() + y.len())?;
            return Ok(Value::from([x, y].concat()));
        }
        if list(a) && list(b) {
            let mut items = Vec::new();
            for item in a.try_iter()?.chain(b.try_iter()?) {
                self.charge(ENTRY)?;
                items.push(item);
            }
            return Ok(Value::from(items));
        }
        number("+", a, b, i128::checked_add, |x, y| x + y)
    }

    fn product(&self, a: &Value, b: &Value) -> Result<Value, Error> {
        if let Some((text, times)) = a.as_str().zip(b.as_usize()).or_else(|| b.as_str().zip(a.as_usize())) {
            self.charge(text.len().saturating_mul(times))?;
            return Ok(Value::from(text.repeat(times)));
        }
        number("*", a, b, i128::checked_mul, |x, y| x * y)
    }

    /// `value[start:stop:step]` as in Python.
    fn slice(&self, value: &Value, bounds: [&Value; 3]) -> Result<Value, Error> {
        if value.is_undefined() || value.is_none() {
            return Ok(Value::from(Vec::<Value>::new()));
        }
        let bound = |v: &Value| -> Result<Option<i64>, Error> {
            if v.is_none() || v.is_undefined() { Ok(None) } else { i64::try_from(v.clone()).map(Some) }
        };
        let [start, stop, step] = [bound(bounds[0])?, bound(bounds[1])?, bound(bounds[2])?];
        if let Some(text) = value.as_str() {
            self.charge(text.len())?;
            let chars: Vec<char> = text.chars().collect();
            let picked: String = picked(chars.len(), start, stop, step)?.filter_map(|i| chars.get(i)).collect();
            return Ok(Value::from(picked));
        }
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            return Err(invalid(format!("a {} cannot be sliced", value.kind())));
        }
        let mut items = Vec::new();
        for item in value.try_iter()? {
            self.charge(ENTRY)?;
            items.push(item);
        }
        Ok(Value::from(
            picked(items.len(), start, stop, step)?.filter_map(|i| items.get(i).cloned()).collect::<Vec<_>>(),
        ))
    }
}

/// The places that a slice of Python names, of `n`.
fn picked(
    n: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<impl Iterator<Item = usize>, Error> {
    let (n, step) = (n as i64, step.unwrap_or(1));
    if step == 0 {
        return Err(invalid("the step of a slice is 0"));
    }
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let place = |at: i64| if at < 0 { at.saturating_add(n) } else { at }.clamp(low, high);
    let start = start.map_or(if step > 0 { low } else { high }, place);
    let stop = stop.map_or(if step > 0 { high } else { low }, place);
    let inside = move |at: &i64| if step > 0 { *at < stop } else { *at > stop };
    let places = successors(Some(start), move |at| at.checked_add(step)).take_while(inside);
    Ok(places.filter_map(|at| usize::try_from(at).ok()))
}

/// A sum or a product of numbers: of integers as such, else of floats.
fn number(
    sign: &str,
    a: &Value,
    b: &Value,
    integers: fn(i128, i128) -> Option<i128>,
    floats: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    let impossible = || invalid(format!("unable to calculate {} {sign} {}", a.kind(), b.kind()));
    let countable = |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool);
    if !countable(a) || !countable(b) {
        return Err(impossible());
    }
    if let (Ok(x), Ok(y)) = (i128::try_from(a.clone()), i128::try_from(b.clone()))
        && (a.is_integer() || a.kind() == ValueKind::Bool)
        && (b.is_integer() || b.kind() == ValueKind::Bool)
    {
        let result = integers(x, y).ok_or_else(impossible)?;
        return Ok(i64::try_from(result).map_or_else(|_| Value::from(result), Value::from));
    }
    Ok(Value::from(floats(f64::try_from(a.clone())?, f64::try_from(b.clone())?)))
}
