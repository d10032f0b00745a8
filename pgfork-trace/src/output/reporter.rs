//! Says every line in the forms and to the places that were asked for.

use std::{
    io::{self, ErrorKind, Write},
    path::Path,
};

use jiff::Timestamp;

use super::{
    Line, OpenError, OutputOptions, Surroundings, escape,
    file::{self, Created},
    json::JsonLines,
    text::{Text, TextOptions},
};

/// The reader of standard output went away. Said once; from then on only the
/// file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("standard output was closed")]
pub struct Closed;

/// Writes lines as text or JSON to standard output, and as JSON to a file.
///
/// With JSON on standard output, header, notices and totals go to standard
/// error as text, if that is a terminal or `-v` was given. Errors of writing
/// are said once on standard error, counted, and end nothing.
pub struct Reporter {
    stdout: Option<Stdout>,
    /// Text for people next to JSON on standard output.
    people: Option<Text>,
    stderr: Box<dyn Write + Send>,
    file: Option<Kept>,
    /// Time of the last line or tick.
    last: Timestamp,
    complained_stdout: bool,
    complained_file: bool,
    /// Blocks of text that could not be written.
    unwritten: u64,
}

/// The output file.
struct Kept {
    created: Created,
    lines: JsonLines,
}

impl Kept {
    fn create(path: &Path, max_size: Option<u64>) -> Result<Self, OpenError> {
        let (file, created) = Created::new(path)?;
        Ok(Self {
            created,
            lines: JsonLines::new(Box::new(file), max_size),
        })
    }
}

/// Where watching never began, no empty file is left to be in the way of the next try.
impl Drop for Kept {
    fn drop(&mut self) {
        if self.lines.is_empty() {
            self.created.remove_empty();
        }
    }
}

enum Stdout {
    Text(Text, Box<dyn Write + Send>),
    Json(JsonLines),
}

impl Reporter {
    /// Creates the output file, if one was asked for.
    pub fn new(
        options: &OutputOptions,
        surroundings: &Surroundings,
        stdout: impl Write + Send + 'static,
        stderr: impl Write + Send + 'static,
    ) -> Result<Self, OpenError> {
        let file = options
            .file
            .as_deref()
            .map(|path| Kept::create(path, options.max_size))
            .transpose()?;
        let text = |terminal, details| {
            Text::new(TextOptions {
                color: surroundings.colors(options.color, terminal),
                time_zone: surroundings.time_zone.clone(),
                quiet: options.quiet,
                verbose: options.verbose,
                details,
            })
        };
        let to_people = options.json
            && options.quiet == 0
            && (surroundings.stderr_terminal || options.verbose > 0);
        let stdout: Box<dyn Write + Send> = Box::new(stdout);
        Ok(Self {
            people: to_people.then(|| text(surroundings.stderr_terminal, false)),
            stdout: Some(if options.json {
                let store = Box::new(file::Stream(stdout));
                Stdout::Json(JsonLines::new(store, options.max_size))
            } else {
                Stdout::Text(text(surroundings.stdout_terminal, true), stdout)
            }),
            stderr: Box::new(stderr),
            file,
            last: Timestamp::UNIX_EPOCH,
            complained_stdout: false,
            complained_file: false,
            unwritten: 0,
        })
    }

    /// Says a line.
    pub fn emit(&mut self, time: Timestamp, line: &Line) -> Result<(), Closed> {
        self.last = time;
        self.with_file(|file| file.emit(time, line));
        if let Some(people) = &mut self.people {
            let text = people.line(time, line);
            self.say(&text);
        }
        self.with_stdout(|text| text.line(time, line), |json| json.emit(time, line))
    }

    /// Says what is due by now: counts of folded refusals. To be called about every second.
    pub fn tick(&mut self, now: Timestamp) -> Result<(), Closed> {
        self.last = now;
        self.with_file(|file| file.tick(now));
        self.with_stdout(|text| text.tick(now), |json| json.tick(now))
    }

    /// Says what is held back. To be called at the end, also after [`Closed`].
    pub fn finish(&mut self) -> Result<(), Closed> {
        let now = self.last;
        self.with_file(|file| file.flush(now));
        if let Some(people) = &mut self.people {
            let text = people.finish(now);
            self.say(&text);
        }
        self.with_stdout(|text| text.finish(now), |json| json.flush(now))
    }

    /// Lines and blocks of text that could not be written.
    #[must_use]
    pub fn unwritten(&self) -> u64 {
        let stdout = match &self.stdout {
            Some(Stdout::Json(json)) => json.unwritten(),
            _ => 0,
        };
        let file = self.file.as_ref().map_or(0, |file| file.lines.unwritten());
        self.unwritten + stdout + file
    }

    fn with_file(&mut self, write: impl FnOnce(&mut JsonLines) -> io::Result<()>) {
        let Some(file) = &mut self.file else {
            return;
        };
        if let Err(error) = write(&mut file.lines)
            && !self.complained_file
        {
            self.complained_file = true;
            let complaint = format!(
                "pgfork-trace: cannot write to {}: {}; watching goes on\n",
                escape::name(&file.created.path.to_string_lossy()),
                reason(&error)
            );
            self.say(&complaint);
        }
    }

    fn with_stdout(
        &mut self,
        render: impl FnOnce(&mut Text) -> String,
        write: impl FnOnce(&mut JsonLines) -> io::Result<()>,
    ) -> Result<(), Closed> {
        let result = match &mut self.stdout {
            None => Ok(()),
            Some(Stdout::Json(json)) => write(json),
            Some(Stdout::Text(text, out)) => {
                let block = render(text);
                if block.is_empty() {
                    Ok(())
                } else {
                    let result = out.write_all(block.as_bytes()).and_then(|()| out.flush());
                    self.unwritten += u64::from(result.is_err());
                    result
                }
            }
        };
        let Err(error) = result else { return Ok(()) };
        if error.kind() == ErrorKind::BrokenPipe {
            self.stdout = None;
            return Err(Closed);
        }
        if !self.complained_stdout {
            self.complained_stdout = true;
            let complaint = format!(
                "pgfork-trace: cannot write to standard output: {}; watching goes on\n",
                reason(&error)
            );
            self.say(&complaint);
        }
        Ok(())
    }

    /// To standard error. Where that fails, there is nobody left to tell.
    fn say(&mut self, text: &str) {
        if !text.is_empty() {
            let _ = self.stderr.write_all(text.as_bytes());
            let _ = self.stderr.flush();
        }
    }
}

/// An error without Rust's "(os error 28)".
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
#[path = "reporter_tests.rs"]
mod tests;
