//! A folder with all that a run gave: a table, a chart, the rows, and the devices that there are.

use std::fs;
use std::path::{Path, PathBuf};

use ternion::files::atomic;
use ternion::tools::bench::BenchRow;
use ternion::{Error, Result};

use crate::cli::Outcome;
use crate::cli::bench::rows::{Format, RowWriter};
use crate::cli::devices::list;
use crate::cli::plot::{BarsFigure, Font, PlotFile};

/// The files of a report.
const TABLE: &str = "bench.md";
const ROWS: &str = "bench.json";
const CHART: &str = "bench.svg";
const DEVICES: &str = "devices.txt";

/// A folder for a report: new, or empty.
#[derive(Debug)]
pub struct Report(PathBuf);

impl Report {
    /// Makes the folder, if there is none.
    ///
    /// # Errors
    /// [`Error::Argument`] for a folder that has something in it, [`Error::Io`].
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        if fs::read_dir(folder).map_err(Error::io(folder))?.next().is_some() {
            return Err(Error::argument("report", format!("{} is not empty; give a new folder", folder.display())));
        }
        atomic::check_writable(&folder.join(TABLE))?;
        Ok(Report(folder.to_owned()))
    }

    /// Writes the files.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, rows: &[BenchRow], font: &Font, figure: &BarsFigure) -> Outcome {
        let mut table = table(rows)?;
        table.extend_from_slice(format!("\n![the rates as bars]({CHART})\n").as_bytes());
        atomic::write(&self.0.join(TABLE), table)?;
        let mut json = RowWriter::new(Vec::new(), Format::Json, false);
        rows.iter().try_for_each(|row| json.row(row))?;
        atomic::write(&self.0.join(ROWS), json.finish()?)?;
        PlotFile::new("report", self.0.join(CHART).as_os_str())?.write(font, figure)?;
        let mut devices = Vec::new();
        list(&mut devices)?;
        Ok(atomic::write(&self.0.join(DEVICES), devices)?)
    }
}

/// Tables of all rows, one for each setup.
fn table(rows: &[BenchRow]) -> Outcome<Vec<u8>> {
    let mut writer = RowWriter::new(Vec::new(), Format::Md, true);
    for run in rows.chunk_by(|a, b| a.setup == b.setup) {
        writer.begin_run(&run.iter().map(|row| row.test.clone()).collect::<Vec<_>>());
        run.iter().try_for_each(|row| writer.row(row))?;
        writer.end_run()?;
    }
    writer.finish()
}
