//! Rows as they come: into a table for people, or in a form for programs; and back from a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use clap::ValueEnum;
use serde_json::Value;
use ternion::tools::bench::{BenchRow, SCHEMA};
use ternion::{Error, Result};

use crate::cli::bench::fields::{Fields, cell, literal, object};
use crate::cli::bench::table::{Table, profiles};
use crate::cli::{Failure, Outcome};

/// Maximum size of a file of rows.
const MAX_BYTES: u64 = 256 << 20;

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table of Markdown.
    Md,
    /// A list of objects.
    Json,
    /// One object per line.
    Jsonl,
    /// Comma-separated values under a header; nothing stands for null, and lists are JSON.
    Csv,
    /// A table and a row for each test, for SQLite.
    Sql,
}

impl Format {
    /// Whether a row is one line of fields, which has no room for times by op.
    pub fn is_flat(self) -> bool {
        matches!(self, Format::Csv | Format::Sql)
    }
}

/// Rows that are written as they come.
pub struct RowWriter<W> {
    out: W,
    format: Format,
    wide: bool,
    /// The table of a run, once its tests are known, and its rows.
    table: Option<Table>,
    run: Vec<BenchRow>,
    /// Rows of all runs.
    count: usize,
}

impl<W: Write> RowWriter<W> {
    /// Rows in this format.
    pub fn new(out: W, format: Format, wide: bool) -> Self {
        RowWriter { out, format, wide, table: None, run: Vec::new(), count: 0 }
    }

    /// A run of these tests begins.
    pub fn begin_run(&mut self, tests: &[String]) {
        self.table = Some(Table::new(tests, self.wide));
    }

    /// Writes a row, and lets it be seen.
    ///
    /// # Errors
    /// Those of writing.
    pub fn row(&mut self, row: &BenchRow) -> Outcome {
        match self.format {
            Format::Md => self.table_row(row)?,
            Format::Json => {
                let text = json(row, true)?.replace('\n', "\n  ");
                write!(self.out, "{}  {text}", if self.count == 0 { "[\n" } else { ",\n" })?;
            }
            Format::Jsonl => writeln!(self.out, "{}", json(row, false)?)?,
            Format::Csv => self.csv_row(row)?,
            Format::Sql => self.sql_row(row)?,
        }
        self.count += 1;
        Ok(self.out.flush()?)
    }

    fn table_row(&mut self, row: &BenchRow) -> io::Result<()> {
        let Some(table) = &mut self.table else { return Ok(()) };
        if self.run.is_empty() {
            if self.count > 0 {
                writeln!(self.out)?;
            }
            table.begin(&mut self.out, row)?;
        }
        self.run.push(row.clone());
        table.row(&mut self.out, row)
    }

    fn csv_row(&mut self, row: &BenchRow) -> Outcome {
        let Fields(fields) = Fields::of(row)?;
        let mut writer = csv::Writer::from_writer(&mut self.out);
        let failed = |e: csv::Error| match e.into_kind() {
            csv::ErrorKind::Io(e) => Failure::from(e),
            other => Error::format("the rows as CSV", format!("{other:?}")).into(),
        };
        if self.count == 0 {
            writer.write_record(fields.iter().map(|(name, _)| name)).map_err(failed)?;
        }
        writer.write_record(fields.iter().map(|(_, value)| cell(value))).map_err(failed)?;
        Ok(writer.flush()?)
    }

    fn sql_row(&mut self, row: &BenchRow) -> Outcome {
        let Fields(fields) = Fields::of(row)?;
        // In quotes: some are words of SQL.
        let names: Vec<String> = fields.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let (names, values) = (names.join(", "), fields.iter().map(|(_, value)| literal(value)).collect::<Vec<_>>());
        if self.count == 0 {
            writeln!(self.out, "CREATE TABLE IF NOT EXISTS bench ({names});")?;
        }
        Ok(writeln!(self.out, "INSERT INTO bench ({names}) VALUES ({});", values.join(", "))?)
    }

    /// The run has ended, early or not: what belongs behind its rows follows.
    ///
    /// # Errors
    /// Those of writing.
    pub fn end_run(&mut self) -> Outcome {
        profiles(&mut self.out, &self.run)?;
        self.run.clear();
        Ok(self.out.flush()?)
    }

    /// No row follows.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self) -> Outcome<W> {
        if self.format == Format::Json {
            writeln!(self.out, "{}", if self.count == 0 { "[]" } else { "\n]" })?;
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

/// A value as JSON.
///
/// # Errors
/// [`Error::Format`].
pub fn json(value: &(impl serde::Serialize + ?Sized), pretty: bool) -> Result<String> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    text.map_err(|e| Error::format("the rows as JSON", e))
}

/// The rows of a file: a list of JSON, an object on each line, or CSV. Files of the latter two forms may be several, one
/// behind the other.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] for a file that is too large, that has no rows, or others than [`BenchRow`]s of this schema.
pub fn read(path: &Path) -> Result<Vec<BenchRow>> {
    let text = read_text(path)?;
    let failed = |n: usize, e: &dyn std::fmt::Display| Error::format(format!("{}: row {n}", path.display()), e);
    let values: Vec<Value> = match text.trim_start().chars().next() {
        Some('[') => serde_json::from_str(&text).map_err(|e| Error::format(path.display(), e))?,
        Some('{') => {
            let rows = serde_json::Deserializer::from_str(&text).into_iter::<Value>().enumerate();
            rows.map(|(i, row)| row.map_err(|e| failed(i + 1, &e))).collect::<Result<_>>()?
        }
        _ => {
            let mut reader = csv::Reader::from_reader(text.as_bytes());
            let header = reader.headers().map_err(|e| Error::format(path.display(), e))?.clone();
            // The header of a second file.
            let records = reader.records().filter(|record| !record.as_ref().is_ok_and(|r| *r == header)).enumerate();
            let row = |(i, record): (usize, csv::Result<csv::StringRecord>)| {
                let record = record.map_err(|e| failed(i + 1, &e))?;
                Ok(Value::Object(object(header.iter(), record.iter())))
            };
            records.map(row).collect::<Result<_>>()?
        }
    };
    if values.is_empty() {
        return Err(Error::format(path.display(), "has no rows of `ternion bench`"));
    }
    values.into_iter().enumerate().map(|(i, value)| row_of(value, |e| failed(i + 1, e))).collect()
}

fn row_of(value: Value, failed: impl Fn(&dyn std::fmt::Display) -> Error) -> Result<BenchRow> {
    match value.get("schema").map(Value::as_u64) {
        Some(Some(schema)) if schema == u64::from(SCHEMA) => {}
        Some(Some(schema)) => {
            return Err(failed(&format!("its schema is {schema}, and this version reads schema {SCHEMA}")));
        }
        _ => return Err(failed(&"has no number \"schema\": it is not a row of `ternion bench`")),
    }
    let row: BenchRow = serde_json::from_value(value).map_err(|e| failed(&e))?;
    row.check().map_err(|e| failed(&e))?;
    Ok(row)
}

fn read_text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::format(
            path.display(),
            format!("is larger than {MAX_BYTES} bytes: no rows of `ternion bench`"),
        ));
    }
    String::from_utf8(bytes).map_err(|e| Error::format(path.display(), e.utf8_error()))
}
