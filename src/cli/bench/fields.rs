//! Rows as fields by name, for tables of programs: CSV and SQL.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};
use ternion::tools::bench::BenchRow;
use ternion::{Error, Result};

/// Names and values of an object, in its order.
pub struct Fields(pub Vec<(String, Value)>);

impl Fields {
    /// Those of a row.
    ///
    /// # Errors
    /// [`Error::Format`] for numbers that JSON does not have.
    pub fn of(row: &BenchRow) -> Result<Self> {
        let text = serde_json::to_string(row).map_err(|e| Error::format("a row as JSON", e))?;
        serde_json::from_str(&text).map_err(|e| Error::format("a row as JSON", e))
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Ordered;
        impl<'de> Visitor<'de> for Ordered {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut all = Vec::new();
                while let Some(field) = map.next_entry()? {
                    all.push(field);
                }
                Ok(Fields(all))
            }
        }
        from.deserialize_map(Ordered)
    }
}

/// A value as a cell of CSV: nothing for null, texts as they are, all else as JSON. A text that would be read as one of
/// those is in quotes.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if !text.is_empty() && serde_json::from_str::<Value>(text).is_err() => text.clone(),
        other => other.to_string(),
    }
}

/// The value of a [`cell`].
pub fn value(cell: &str) -> Value {
    if cell.is_empty() {
        return Value::Null;
    }
    serde_json::from_str(cell).unwrap_or_else(|_| Value::String(cell.to_owned()))
}

/// A value as SQL writes it.
pub fn literal(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::Bool(b) => u8::from(*b).to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(text) => format!("'{}'", text.replace('\'', "''")),
        other => format!("'{}'", other.to_string().replace('\'', "''")),
    }
}

/// The object of a record of CSV under its header.
pub fn object<'a>(header: impl Iterator<Item = &'a str>, record: impl Iterator<Item = &'a str>) -> Map<String, Value> {
    header.zip(record).map(|(name, cell)| (name.to_owned(), value(cell))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_are_read_as_what_they_were() {
        for before in
            [json!(null), json!(true), json!(8), json!(-1.5e-9), json!("text, it's"), json!([1, 2]), json!({"a": "b"})]
        {
            assert_eq!(value(&cell(&before)), before);
        }
        // Texts that look like something else.
        for text in ["", "8", "null", "[1]", "\"a\"", " 8 "] {
            assert_eq!(value(&cell(&json!(text))), json!(text), "{text:?}");
        }
    }

    #[test]
    fn sql_keeps_quotes_inside() {
        assert_eq!(literal(&json!("it's")), "'it''s'");
        assert_eq!([literal(&json!(null)), literal(&json!(2.5)), literal(&json!([1, 2]))], ["NULL", "2.5", "'[1,2]'"]);
    }
}
