//! What tells rows of a benchmark apart beside their tests, in few words.

use std::path::Path;

use ternion::tools::bench::BenchRow;

/// For each row, the parts of its setup in which not all of them agree: "CPU, 2 threads, head int8"; empty where all do.
pub fn labels(rows: &[&BenchRow]) -> Vec<String> {
    let parts: [fn(&BenchRow) -> String; 8] = [
        |row| Path::new(&row.setup.model).file_name().map_or(row.setup.model.clone(), |n| n.to_string_lossy().into()),
        |row| row.setup.adapter.clone().unwrap_or_else(|| "CPU".into()),
        |row| row.setup.threads.map_or(String::new(), |n| format!("{n} thread{}", if n == 1 { "" } else { "s" })),
        |row| row.setup.cpu_level.clone().unwrap_or_default(),
        |row| row.setup.precision.clone(),
        |row| format!("head {}", row.setup.head),
        |row| row.setup.kv.as_ref().map_or(String::new(), |kv| format!("cache {kv}")),
        |row| row.setup.activations.as_ref().map_or(String::new(), |a| format!("activations {a}")),
    ];
    let mut labels = vec![Vec::new(); rows.len()];
    for part in parts {
        let texts: Vec<String> = rows.iter().map(|row| part(row)).collect();
        // What a device does not have does not tell it from others.
        let mut known = texts.iter().filter(|text| !text.is_empty());
        let first = known.next();
        if known.any(|text| Some(text) != first) {
            labels
                .iter_mut()
                .zip(texts)
                .filter(|(_, text)| !text.is_empty())
                .for_each(|(label, text)| label.push(text));
        }
    }
    labels.into_iter().map(|label: Vec<String>| label.join(", ")).collect()
}
