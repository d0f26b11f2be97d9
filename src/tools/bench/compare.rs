//! Rows of two runs side by side: which ones measured the same, and by how much they differ.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::tools::bench::row::{BenchRow, SCHEMA};
use crate::tools::bench::statistics::Ratio;

/// What a test is: rows that differ here are not of the same test.
const TEST: [&str; 8] = ["model", "test", "n_prompt", "n_gen", "n_depth", "n_sessions", "n_images", "n_texts"];
/// How a test was set up: rows of one test that differ here are not compared.
const SETTINGS: [&str; 11] = [
    "parameters",
    "precision",
    "head",
    "kv",
    "activations",
    "batch_invariant",
    "threads",
    "cpu_level",
    "autotune",
    "warmup",
    "backend",
];
/// Settings that a device may not have, such as a GPU the threads of the CPU, or a log of an older version: they count where
/// both rows have them.
const OF_SOME: [&str; 4] = ["batch_invariant", "threads", "cpu_level", "autotune"];
/// What may differ as it likes, and tells rows of one file apart.
const PLACES: [&str; 3] = ["device", "processor", "version"];

/// Keys that a comparison may ignore: those by which it tells tests and settings apart.
pub const KEYS: [&str; TEST.len() + SETTINGS.len()] = {
    let mut all = [""; TEST.len() + SETTINGS.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < TEST.len() { TEST[i] } else { SETTINGS[i - TEST.len()] };
        i += 1;
    }
    all
};

/// Two rows of one test.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The row of the first run.
    pub a: BenchRow,
    /// The row of the second run.
    pub b: BenchRow,
    /// How many times as fast the second one is.
    pub ratio: Ratio,
}

/// Two runs side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Rows of both, in the order of the first.
    pub pairs: Vec<Pair>,
    /// Tests that only the first has, and that only the second has.
    pub only: [Vec<String>; 2],
}

/// A row with its keys.
struct Keyed<'a> {
    row: &'a BenchRow,
    keys: Map<String, Value>,
}

impl Keyed<'_> {
    fn get(&self, key: &str) -> &Value {
        self.keys.get(key).unwrap_or(&Value::Null)
    }

    /// The first of `keys` in which the rows differ.
    fn difference<'k>(&self, other: &Self, keys: &[&'k str]) -> Option<&'k str> {
        let differ = |key: &str| {
            let (a, b) = (self.get(key), other.get(key));
            a != b && !(OF_SOME.contains(&key) && (a.is_null() || b.is_null()))
        };
        keys.iter().copied().find(|key| differ(key))
    }
}

/// Joins the rows of two runs by model, test and settings, `ignore`d keys aside, and gives the ratio of their rates.
///
/// # Errors
/// [`Error::Argument`] for a key to ignore that is not one of [`KEYS`], for a test of which the runs have different settings (it
/// names the first), for rows of one run that are not told apart, and where nothing is common; [`Error::Unsupported`] for
/// rows of another schema.
pub fn compare(a: &[BenchRow], b: &[BenchRow], ignore: &[String]) -> Result<Comparison> {
    if let Some(key) = ignore.iter().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(Error::argument("ignore", format!("{key:?} is not one of {}", KEYS.join(", "))));
    }
    let [a, b] = [keyed(a)?, keyed(b)?];
    let kept = |keys: &[&'static str]| -> Vec<&'static str> {
        keys.iter().copied().filter(|key| !ignore.iter().any(|i| i == key)).collect()
    };
    let (test, settings) = (kept(&TEST), kept(&SETTINGS));
    let all = [&test[..], &settings].concat();
    let mut partner: Vec<Option<usize>> = vec![None; a.len()];
    for (i, row) in a.iter().enumerate() {
        partner[i] = matching(row, &b, &all)?;
    }
    one_to_one(&a, &b, &partner)?;
    let lonely_b: Vec<usize> = (0..b.len()).filter(|i| !partner.contains(&Some(*i))).collect();
    for (row, _) in a.iter().zip(&partner).filter(|(_, partner)| partner.is_none()) {
        let same_test = lonely_b.iter().map(|&i| &b[i]).find(|other| row.difference(other, &test).is_none());
        if let Some((other, key)) = same_test.and_then(|other| Some((other, row.difference(other, &settings)?))) {
            return Err(unlike(row, other, key));
        }
    }
    let pairs: Vec<Pair> = a.iter().zip(&partner).filter_map(|(row, i)| Some(pair(row.row, b[(*i)?].row))).collect();
    let only_a = a.iter().zip(&partner).filter(|(_, partner)| partner.is_none()).map(|(row, _)| row.row.test.clone());
    let only = [only_a.collect(), lonely_b.iter().map(|&i| b[i].row.test.clone()).collect()];
    if pairs.is_empty() {
        return Err(nothing_common(&a, &b, &test));
    }
    Ok(Comparison { pairs, only })
}

fn keyed<'a>(rows: &'a [BenchRow]) -> Result<Vec<Keyed<'a>>> {
    let of = |row: &'a BenchRow| {
        let BenchRow { schema, test, .. } = row;
        if *schema != SCHEMA {
            let problem = format!("its rows have schema {schema}, and this version compares schema {SCHEMA}");
            return Err(Error::Unsupported { object: test.clone(), problem });
        }
        row.check()?;
        match serde_json::to_value(row) {
            Ok(Value::Object(keys)) => Ok(Keyed { row, keys }),
            other => Err(Error::format(test, format!("is no row: {other:?}"))),
        }
    };
    rows.iter().map(of).collect()
}

/// The number of the row that measured the same as `row`; if several did, of the one in the same place.
fn matching(row: &Keyed, others: &[Keyed], keys: &[&'static str]) -> Result<Option<usize>> {
    let same = |keys: &[&'static str], of: &[usize]| -> Vec<usize> {
        of.iter().copied().filter(|&i| row.difference(&others[i], keys).is_none()).collect()
    };
    let found = same(keys, &(0..others.len()).collect::<Vec<_>>());
    let near = if found.len() > 1 { same(&PLACES[..1], &found) } else { found.clone() };
    match near[..] {
        [i] => Ok(Some(i)),
        [] if found.is_empty() => Ok(None),
        _ => Err(ambiguous(row, &others[found[0]], &others[found[1]], "second")),
    }
}

/// Each row of the second run has one partner at most.
fn one_to_one(a: &[Keyed], b: &[Keyed], partner: &[Option<usize>]) -> Result<()> {
    for (i, found) in partner.iter().enumerate() {
        let twin = (0..i).find(|&j| found.is_some() && partner[j] == *found);
        if let (Some(j), Some(found)) = (twin, found) {
            return Err(ambiguous(&b[*found], &a[j], &a[i], "first"));
        }
    }
    Ok(())
}

fn ambiguous(row: &Keyed, one: &Keyed, other: &Keyed, run: &str) -> Error {
    let difference = PLACES.iter().chain(&KEYS).find(|key| one.get(key) != other.get(key));
    let how = difference.map_or("which are alike".to_owned(), |key| {
        format!("which differ in {key}: {} and {}", one.get(key), other.get(key))
    });
    Error::argument(
        &row.row.test,
        format!("the {run} run has several rows of it, {how}; compare files with one of them"),
    )
}

fn unlike(a: &Keyed, b: &Keyed, key: &str) -> Error {
    let (one, other) = (a.get(key), b.get(key));
    let problem = format!(
        "{key} is {one} in the first run and {other} in the second, which is not the same measurement; ignore {key} to \
         compare them all the same"
    );
    Error::argument(&a.row.test, problem)
}

fn nothing_common(a: &[Keyed], b: &[Keyed], test: &[&'static str]) -> Error {
    let problem = match (a.first(), b.first()) {
        (Some(a), Some(b)) => match a.difference(b, test) {
            Some("model") => format!(
                "the runs have no test of one model in common: {} in the first, {} in the second; ignore model to compare \
                 them all the same",
                a.get("model"),
                b.get("model")
            ),
            _ => "the runs have no test in common".to_owned(),
        },
        _ => "a run has no rows".to_owned(),
    };
    Error::argument("rows", problem)
}

fn pair(a: &BenchRow, b: &BenchRow) -> Pair {
    let seconds = |row: &BenchRow| row.samples_ns.iter().map(|&ns| 1e-9 * ns as f64).collect::<Vec<f64>>();
    Pair { ratio: Ratio::of_times(&seconds(a), &seconds(b)), a: a.clone(), b: b.clone() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A row with some of its keys changed.
    fn row(changes: Value) -> BenchRow {
        let text = r#"{
            "schema": 1, "version": "0.1.0", "commit": null, "system": "linux", "processor": "P", "memory_bytes": 1,
            "time": "2026-01-01T00:00:00Z", "model": "M", "weight_bytes": 1, "parameters": 5, "backend": "cpu",
            "device": "CPU, 2 threads", "adapter": null, "vendor_id": null, "device_id": null, "api": null, "driver": null,
            "threads": 2, "cpu_level": "avx2", "precision": "f16", "head": "f16", "kv": "f16", "activations": "int8",
            "autotune": null, "variants": null, "test": "pp9", "n_prompt": 9, "n_gen": 0, "n_depth": 0, "n_sessions": 1,
            "n_images": 0, "n_texts": 0, "context": 10, "warmup": 1, "repetitions": 3, "samples_ns": [100, 110, 90],
            "samples_ts": [9e7, 8.2e7, 1e8], "tokens_per_s": 9e7, "stddev": 1e6, "tokens_per_s_median": 9e7,
            "tokens_per_s_min": 8.2e7, "tokens_per_s_max": 1e8, "images_per_s": null, "texts_per_s": null, "ms": 1e-4,
            "bytes_per_token": 1.0, "bandwidth": 1e9, "bandwidth_share": 0.5, "dispatches_per_token": 1.0,
            "host_us_per_token": 0.0, "peak_host_bytes": null, "device_bytes": 1
        }"#;
        let mut row: Value = serde_json::from_str(text).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            row[key] = value.clone();
        }
        serde_json::from_value(row).unwrap()
    }

    fn tests_of(comparison: &Comparison) -> Vec<&str> {
        comparison.pairs.iter().map(|pair| pair.a.test.as_str()).collect()
    }

    fn refused(a: &[BenchRow], b: &[BenchRow], ignore: &[&str], texts: &[&str]) {
        let ignore: Vec<String> = ignore.iter().map(ToString::to_string).collect();
        let error = compare(a, b, &ignore).unwrap_err().to_string();
        assert!(texts.iter().all(|text| error.contains(text)), "{texts:?}: {error}");
    }

    #[test]
    fn rows_of_two_machines_are_joined_by_test() {
        let a = [row(json!({})), row(json!({"test": "tg5", "n_prompt": 0, "n_gen": 5}))];
        let faster = json!({"samples_ns": [50, 55, 45], "processor": "Q", "device": "CPU, other", "version": "0.2.0"});
        let b = [row(json!({"test": "pp7", "n_prompt": 7})), row(faster)];
        let found = compare(&a, &b, &[]).unwrap();
        assert_eq!(tests_of(&found), ["pp9"]);
        assert!((found.pairs[0].ratio.value - 2.0).abs() < 1e-9 && found.pairs[0].ratio.differs() == Some(true));
        assert_eq!(found.only, [["tg5"], ["pp7"]]);
    }

    #[test]
    fn other_settings_are_refused_by_name_and_compared_where_they_are_ignored() {
        let (a, b) = ([row(json!({}))], [row(json!({"precision": "f32"}))]);
        refused(&a, &b, &[], &["pp9", "precision", "f16", "f32", "ignore precision"]);
        assert_eq!(compare(&a, &b, &["precision".into()]).unwrap().pairs.len(), 1);
        refused(&a, &b, &["colour"], &["colour", "precision", "model"]);
        refused(&a, &[row(json!({"model": "N"}))], &[], &["model", "\"N\""]);
        refused(&a, &[row(json!({"schema": 2}))], &[], &["schema 2", "schema 1"]);
        refused(&a, &[row(json!({"samples_ns": [0, 1, 2]}))], &[], &["samples_ns"]);
        refused(&a, &[], &[], &["no rows"]);
        refused(&a, &[row(json!({"test": "pp8", "n_prompt": 8}))], &[], &["no test in common"]);
    }

    #[test]
    fn sweeps_are_joined_setting_by_setting() {
        let sweep = |ns: u64| ["f16", "f32"].map(|p| row(json!({"precision": p, "samples_ns": [ns, ns, ns]})));
        let found = compare(&sweep(100), &sweep(50), &[]).unwrap();
        assert_eq!(found.pairs.len(), 2);
        assert!(found.pairs.iter().all(|pair| pair.a.setup.precision == pair.b.setup.precision));
        // The second file has one of the two only: it is compared with its own.
        let found = compare(&sweep(100), &sweep(50)[..1], &[]).unwrap();
        assert_eq!((found.pairs.len(), &found.only[0][..]), (1, &["pp9".to_owned()][..]));
        refused(&sweep(100), &sweep(50), &["precision"], &["several rows", "precision"]);
        let gpu = json!({"backend": "gpu", "threads": null, "cpu_level": null, "autotune": true});
        refused(&sweep(1)[..1], &[row(gpu.clone())], &[], &["backend"]);
        assert_eq!(compare(&sweep(1)[..1], &[row(gpu)], &["backend".into()]).unwrap().pairs.len(), 1);
    }
}
