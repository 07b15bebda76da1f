//! Latency at a constant rate, and what of it is the machine's: the rows that both benches print.

use hdrhistogram::Histogram;
use serde::Serialize;
use tidegate::engine::Report;
use tidegate::engine::hiccup::{Found, Hiccups};
use tidegate::jobs::arrivals::Arrivals;

use crate::cli::exit::{self, Failure};
use crate::cli::summary::quantile;

/// Samples beyond a quantile without which it is left out: chance decides where it lies.
const BEYOND_MIN: f64 = 10.0;
/// Seconds that a run lasts where only its rate is given.
const SECONDS_DEFAULT: f64 = 10.0;
/// Highest rate that can be given.
const RATE_MAX: f64 = 1e9;

/// Records per second of an open loop.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (1.0..=RATE_MAX).contains(rate));
    rate.ok_or_else(|| {
        format!("give records per second from 1 to {RATE_MAX}; for full speed leave it out")
    })
}

/// How many records there are in `seconds` at `rate`.
pub fn records_in(seconds: Option<f64>, rate: f64) -> u64 {
    ((seconds.unwrap_or(SECONDS_DEFAULT) * rate) as u64).max(1)
}

/// Quantiles in us.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    samples: u64,
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
    p999: Option<f64>,
    p9999: Option<f64>,
    max: Option<f64>,
}

impl Quantiles {
    /// Those of `histogram`, in ns, that enough samples lie beyond.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let beyond = |share: f64| histogram.len() as f64 * (1.0 - share) + 1e-6;
        let at =
            |share: f64| quantile(histogram, share, 1e3).filter(|_| beyond(share) >= BEYOND_MIN);
        Self {
            samples: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: quantile(histogram, 1.0, 1e3),
        }
    }

    /// What stands above [`row`](Self::row).
    pub fn head(title: &str) -> String {
        let columns = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];
        let columns = columns.map(|column| format!("{column:>11}"));
        format!("{title:<16}{}\n", columns.concat())
    }

    /// One line of text.
    pub fn row(&self, name: &str) -> String {
        let Self { samples: _, p50, p90, p99, p999, p9999, max } = *self;
        let columns = [p50, p90, p99, p999, p9999, max].map(|value| match value {
            Some(us) => format!("{us:>11.1}"),
            None => format!("{:>11}", "n/a"),
        });
        format!("{name:<16}{}\n", columns.concat())
    }
}

/// Says on standard error that the rate was not kept, if the generator is late.
pub fn warn_of_late_generator(is_late: bool) {
    if is_late {
        exit::say(
            "warning: the generator fell behind its timetable and did not catch up: this rate \
             cannot be kept, and the latency grows with the length of the run",
        );
    }
}

/// What an open loop found. Without a rate all of it is null.
#[derive(Default, Serialize)]
pub struct Latency {
    rate: Option<f64>,
    /// The rate was not kept: the generator fell behind and did not catch up.
    late_generator: Option<bool>,
    latency_us: Option<Quantiles>,
    hiccup_us: Option<Quantiles>,
    /// Whether hiccups were measured ahead of workers, and so are the machine's alone.
    hiccup_preempting: Option<bool>,
}

impl Latency {
    /// Of a run with these hiccups.
    pub fn of(arrivals: &Arrivals, hiccups: &Found) -> Self {
        Self {
            rate: arrivals.timetable().timing().per_second,
            late_generator: Some(arrivals.timetable().is_late()),
            latency_us: Some(Quantiles::of(&arrivals.latency_ns())),
            hiccup_us: Some(Quantiles::of(&hiccups.late_ns)),
            hiccup_preempting: Some(hiccups.preempting),
        }
    }

    /// Says on standard error what is wrong with it.
    pub fn warn(&self) {
        warn_of_late_generator(self.late_generator == Some(true));
        if self.hiccup_preempting == Some(false) {
            exit::say(
                "warning: hiccups include waits for the workers: no thread may be given priority \
                 here (it needs root or CAP_SYS_NICE)",
            );
        }
    }

    /// Its two rows, if there was a rate.
    pub fn text(&self) -> String {
        let (Some(latency), Some(hiccup)) = (self.latency_us, self.hiccup_us) else {
            return String::new();
        };
        let head = Quantiles::head("us");
        format!("{head}{}{}", latency.row("latency"), hiccup.row("hiccups"))
    }
}

/// What `run` returns, and the hiccups of the cores of `workers` meanwhile, if they are asked for.
pub fn beside<R>(
    hiccups: bool,
    workers: usize,
    run: impl FnOnce() -> Result<R, Failure>,
) -> Result<(R, Option<Found>), Failure> {
    let hiccups = hiccups.then(|| Hiccups::start(workers)).transpose()?;
    Ok((run()?, hiccups.map(Hiccups::stop)))
}

/// What was due while a failed job started again waited for that.
pub fn refuse_restarted(report: &Report) -> Result<(), Failure> {
    match report.restarts {
        0 => Ok(()),
        restarts => Err(Failure::Failed(format!(
            "the job failed and was started again {restarts} times: its latency means nothing"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate::clock;

    #[test]
    fn a_quantile_with_fewer_than_ten_samples_beyond_is_left_out() {
        let mut histogram = clock::histogram_ns();
        let none = Quantiles::of(&histogram);
        assert_eq!((none.p50, none.max), (None, None));
        histogram.record_n(1_000, 990).expect("in bounds");
        let few = Quantiles::of(&histogram);
        assert_eq!((few.p50, few.p90, few.p99), (Some(1.0), Some(1.0), None));
        histogram.record_n(2_000, 10).expect("in bounds");
        let enough = Quantiles::of(&histogram);
        assert_eq!((enough.p99, enough.p999), (Some(1.0), None));
        assert!(enough.max.is_some_and(|max| (max - 2.0).abs() < 0.01), "{enough:?}");
        assert!(enough.row("latency").contains("n/a"), "{}", enough.row("latency"));
        assert_eq!(enough.row("x").len(), Quantiles::head("us").len());
    }

    #[test]
    fn a_rate_is_at_least_one_and_not_endless() {
        for text in ["0", "0.5", "-1", "NaN", "inf", "1e10", "x", ""] {
            assert!(parse_rate(text).expect_err(text).contains("from 1 to"), "{text}");
        }
        assert_eq!(parse_rate("1e5"), Ok(1e5));
        assert_eq!((records_in(None, 1e5), records_in(Some(0.5), 1.0)), (1_000_000, 1));
    }
}
