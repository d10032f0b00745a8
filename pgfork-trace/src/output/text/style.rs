//! Colours: few, and none that carries meaning alone.

/// Adds colours, or not.
#[derive(Clone, Copy)]
pub(in crate::output) struct Style {
    pub(in crate::output) color: bool,
}

impl Style {
    pub(in crate::output) fn alarm(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(in crate::output) fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(in crate::output) fn label(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(in crate::output) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(in crate::output) fn doubt(self, text: &str) -> String {
        self.paint("33", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color && !text.trim().is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
