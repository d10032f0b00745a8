//! Numbers for people.

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Digits in groups of three: `12 689 408`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// `1 fork`, `2 forks`.
#[must_use]
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A size in the largest unit that it fills, with one decimal where it needs one.
#[must_use]
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < KIB {
        return format!("{number} B");
    }
    let mut scale = u128::from(KIB);
    let mut unit = 0;
    // The next unit also where rounding would give 1024.0 of this one.
    while unit + 1 < UNITS.len() && tenths(number, scale) >= 10240 {
        scale *= 1024;
        unit += 1;
    }
    format!("{} {}", decimal(tenths(number, scale)), UNITS[unit])
}

fn tenths(number: u64, scale: u128) -> u128 {
    (u128::from(number) * 10 + scale / 2) / scale
}

fn decimal(tenths: u128) -> String {
    match tenths % 10 {
        0 => (tenths / 10).to_string(),
        tenth => format!("{}.{tenth}", tenths / 10),
    }
}

/// A unit for all terms of one sum, so that the printed terms add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SumUnit {
    /// MiB with one decimal.
    Mib,
    /// KiB.
    Kib,
    /// Bytes.
    Bytes,
}

impl SumUnit {
    /// The largest unit in which every term is exact. Rounded terms would not add up.
    pub fn exact_for(terms: impl IntoIterator<Item = u64>) -> Self {
        let mut unit = Self::Mib;
        for term in terms {
            if !term.is_multiple_of(KIB) {
                return Self::Bytes;
            }
            // Tenths of MiB are no multiples of KiB; only whole and half MiB are exact.
            if !term.is_multiple_of(MIB / 2) {
                unit = Self::Kib;
            }
        }
        unit
    }

    /// A term.
    #[must_use]
    pub fn show(self, number: u64) -> String {
        match self {
            Self::Mib => {
                let half = if number.is_multiple_of(MIB) { "" } else { ".5" };
                format!("{}{half} MiB", count(number / MIB))
            }
            Self::Kib => format!("{} KiB", count(number / KIB)),
            Self::Bytes => format!("{} B", count(number)),
        }
    }
}

/// A short time with two significant places: `0.42 ms`, `3.1 ms`, `0.19 s`.
#[must_use]
pub fn short_time(ns: u64) -> String {
    let (scale, unit): (u64, _) = match ns {
        0..100_000 => (1_000, "us"),
        100_000..100_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    // Hundredths below 1, tenths below 10, none above.
    let rounded = |parts: u64| {
        (u128::from(ns) * u128::from(parts) + u128::from(scale / 2)) / u128::from(scale)
    };
    if rounded(100) < 100 {
        format!("0.{:02} {unit}", rounded(100))
    } else if rounded(10) < 100 {
        format!("{}.{} {unit}", rounded(10) / 10, rounded(10) % 10)
    } else {
        format!("{} {unit}", rounded(1))
    }
}

/// A long time: `14 s`, `2 min 14 s`, `3 h 5 min`, `2 d 4 h`.
#[must_use]
pub fn long_time(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let two = |large: u64, first: &str, small: u64, second: &str| match small {
        0 => format!("{large} {first}"),
        _ => format!("{large} {first} {small} {second}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => two(seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_204, "1 204"),
            (12_689_408, "12 689 408"),
        ] {
            assert_eq!(count(number), text);
        }
        assert_eq!(counted(1, "fork", "forks"), "1 fork");
        assert_eq!(counted(0, "fork", "forks"), "0 forks");
    }

    #[test]
    fn sizes() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (148 * KIB, "148 KiB"),
            (MIB - 1, "1 MiB"),
            (MIB + 52_429, "1.1 MiB"),
            (7_945_689_498, "7.4 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(number), text, "{number}");
        }
    }

    #[test]
    fn terms_of_a_sum_are_exact() {
        assert_eq!(SumUnit::exact_for([5 * MIB, MIB / 2]), SumUnit::Mib);
        assert_eq!(SumUnit::exact_for([5 * MIB, 4 * KIB]), SumUnit::Kib);
        assert_eq!(SumUnit::exact_for([5 * MIB, 4 * KIB, 1]), SumUnit::Bytes);
        assert_eq!(SumUnit::Mib.show(2048 * MIB + MIB / 2), "2 048.5 MiB");
        assert_eq!(SumUnit::Kib.show(96 * KIB), "96 KiB");
        assert_eq!(SumUnit::Bytes.show(1025), "1 025 B");
    }

    #[test]
    fn times() {
        for (ns, text) in [
            (0, "0.00 us"),
            (1_500, "1.5 us"),
            (99_999, "100 us"),
            (420_000, "0.42 ms"),
            (3_100_000, "3.1 ms"),
            (31_000_000, "31 ms"),
            (190_000_000, "0.19 s"),
            (999_999_999, "1.0 s"),
            (12_400_000_000, "12 s"),
        ] {
            assert_eq!(short_time(ns), text, "{ns}");
        }
        for (s, text) in [
            (0, "0 s"),
            (60, "1 min"),
            (134, "2 min 14 s"),
            (11_100, "3 h 5 min"),
            (187_200, "2 d 4 h"),
        ] {
            assert_eq!(long_time(s * 1_000_000_000), text, "{s}");
        }
    }
}
