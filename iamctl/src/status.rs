//! `iamctl status`: shows the state of the resolver as text, JSON or Prometheus metrics.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::Path;

use pam_iam_core::replace::replace;
use pam_iam_core::wire::{Request, Status};

use crate::Context;
use crate::error::{Error, Reply};
use crate::host::FileError;
use crate::swept::Swept;

pub fn run(context: &Context, prometheus: Option<&Path>) -> Result<Reply, Error> {
    let status: Status = context.report(&Request::Status)?;
    let swept = Swept::load();
    if let Some(path) = prometheus {
        // Everybody may read it: it names no user.
        replace(path, metrics(&status, &swept).as_bytes(), 0o644).map_err(FileError::of(path))?;
        return Ok(Reply::Yes);
    }
    let mut json = serde_json::to_value(&status)?;
    if let Some(json) = json.as_object_mut() {
        json.insert("sweep".to_owned(), sweep_json(&swept));
    }
    let mut text = text(&status, &swept);
    if context.has_no_daemon() {
        if let Some(json) = json.as_object_mut() {
            json.insert("daemon".to_owned(), serde_json::json!(false));
        }
        let _ =
            writeln!(text, "{:<14}none runs: a process for each question, which remembers nothing", "daemon");
    }
    if let Err(mistake) = context.config() {
        if let Some(json) = json.as_object_mut() {
            json.insert("configuration".to_owned(), serde_json::json!(mistake.to_string()));
        }
        let _ = writeln!(text, "{:<14}{mistake}; IAM users are kept out until it is mended", "configuration");
    }
    context.output.show(&json, &text);
    Ok(Reply::Yes)
}

fn sweep_json(swept: &Swept) -> serde_json::Value {
    serde_json::json!({
        "age": swept.age(),
        "running_for": swept.running_for().map(|running| running.as_secs()),
        "seconds": swept.seconds,
        "withdrawals": swept.withdrawals,
        "incomplete": swept.incomplete,
        "overruns": swept.overruns,
        "failures": swept.failures,
        "unknown_uids": swept.unknown_uids,
        "not_in_force": swept.not_in_force,
    })
}

fn sweep_text(swept: &Swept) -> String {
    let mut text = match swept.age() {
        None => "never".to_owned(),
        Some(age) => format!(
            "{age} s ago, took {} s, {} withdrawn, {} not ended completely",
            swept.seconds, swept.withdrawals, swept.incomplete
        ),
    };
    if let Some(running) = swept.running_for().filter(|running| *running > crate::swept::INTERVAL) {
        let _ = write!(text, "; ANOTHER HAS BEEN AT WORK FOR {} s", running.as_secs());
    }
    if swept.failures > 0 {
        let _ = write!(text, "; {} failed", swept.failures);
    }
    if swept.overruns > 0 {
        let _ = write!(text, "; {} took longer than a minute", swept.overruns);
    }
    if !swept.unknown_uids.is_empty() {
        let uids: Vec<String> = swept.unknown_uids.iter().map(ToString::to_string).collect();
        let _ = write!(text, "; left alone, since nobody knows whose they are: uid {}", uids.join(", "));
    }
    if !swept.not_in_force.is_empty() {
        let _ = write!(text, "; NOT IN FORCE HERE: {}", swept.not_in_force.join("; "));
    }
    text
}

fn text(status: &Status, swept: &Swept) -> String {
    let ago = |seconds: Option<u64>| {
        seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds} s ago"))
    };
    let counted = |counts: &BTreeMap<String, u64>| {
        let words: Vec<String> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    let rows = [
        ("resolver", format!("{}, up {} s", status.version, status.uptime)),
        ("roster", format!("{} users, read {}", status.roster_users, ago(status.roster_age))),
        ("remembered", format!("{} names", status.known)),
        ("cache", cache(status, &ago)),
        (
            "IAM",
            format!(
                "{} calls, {} failed, last answer {}",
                status.calls,
                status.errors,
                ago(status.last_answer)
            ),
        ),
        ("last failure", status.last_error.clone().unwrap_or_else(|| "none".to_owned())),
        (
            "unknown names",
            format!("{} of {} look-ups a minute left", status.unknown_left, status.unknown_per_minute),
        ),
        ("backing off", format!("{} names", status.backing_off)),
        ("questions", counted(&status.questions)),
        ("decisions", counted(&status.decisions)),
        ("last sweep", sweep_text(swept)),
    ];
    rows.iter().fold(String::new(), |mut text, (what, value)| {
        let _ = writeln!(text, "{what:<14}{value}");
        text
    })
}

fn cache(status: &Status, ago: &impl Fn(Option<u64>) -> String) -> String {
    match (&status.cache_error, status.cache_bytes) {
        (Some(error), _) => format!("cannot be written: {error}"),
        (None, bytes) => format!("{} kB, written {}", bytes.div_ceil(1000), ago(status.cache_age)),
    }
}

/// Returns the counters in Prometheus' text format
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
fn metrics(status: &Status, swept: &Swept) -> String {
    let by_kind = status.questions.iter().map(|(kind, count)| (format!("{{kind=\"{kind}\"}}"), *count));
    let by_reason = status.decisions.iter().map(|(what, count)| {
        let (policy, reason) = what.split_once(' ').unwrap_or((what, ""));
        (format!("{{policy=\"{policy}\",reason=\"{reason}\"}}"), *count)
    });
    let labelled = [
        Metric::new("questions_total", "counter", "Questions answered.", by_kind.collect()),
        Metric::new("decisions_total", "counter", "Decisions made.", by_reason.collect()),
    ];
    let all = resolver_metrics(status).into_iter().chain(sweep_metrics(swept)).chain(labelled);
    all.map(|metric| metric.to_string()).collect()
}

/// A metric with its values by their labels.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    values: Vec<(String, u64)>,
}

impl Metric {
    fn new(name: &'static str, kind: &'static str, help: &'static str, values: Vec<(String, u64)>) -> Self {
        Self { name, kind, help, values }
    }

    /// Returns a metric with one value and no label.
    fn one((name, kind, help, value): (&'static str, &'static str, &'static str, u64)) -> Self {
        Self::new(name, kind, help, vec![(String::new(), value)])
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kind, help, values } = self;
        write!(f, "# HELP pam_iam_{name} {help}\n# TYPE pam_iam_{name} {kind}\n")?;
        values.iter().try_for_each(|(labels, value)| writeln!(f, "pam_iam_{name}{labels} {value}"))
    }
}

fn resolver_metrics(status: &Status) -> Vec<Metric> {
    let failed = u64::from(status.cache_error.is_some());
    let always = [
        ("uptime_seconds", "gauge", "Seconds since the resolver started.", status.uptime),
        ("iam_calls_total", "counter", "Calls to the IAM API.", status.calls),
        ("iam_errors_total", "counter", "Calls to the IAM API that brought no answer.", status.errors),
        ("roster_users", "gauge", "IAM users who may log in.", status.roster_users as u64),
        ("remembered_names", "gauge", "Names that the resolver remembers.", status.known as u64),
        ("cache_bytes", "gauge", "Size of the cache on disk.", status.cache_bytes),
        ("cache_failed", "gauge", "1 if the cache cannot be written to the disk.", failed),
        (
            "backing_off_names",
            "gauge",
            "Names about which IAM was silent when it was last asked.",
            status.backing_off as u64,
        ),
        (
            "unknown_lookups_left",
            "gauge",
            "Look-ups of unknown names that may be made now.",
            status.unknown_left.into(),
        ),
    ];
    let ages = [
        ("cache_age_seconds", "Seconds since the cache was written to the disk.", status.cache_age),
        ("roster_age_seconds", "Seconds since the list of users was read.", status.roster_age),
        ("iam_last_answer_seconds", "Seconds since IAM last answered.", status.last_answer),
    ];
    let ages = ages.into_iter().filter_map(|(name, help, seconds)| Some((name, "gauge", help, seconds?)));
    always.into_iter().chain(ages).map(Metric::one).collect()
}

fn sweep_metrics(swept: &Swept) -> Vec<Metric> {
    let always = [
        (
            "sweep_overruns_total",
            "counter",
            "Sweeps that took longer than the minute between two sweeps.",
            swept.overruns,
        ),
        (
            "sweep_failures_total",
            "counter",
            "Sweeps that failed before they checked anything.",
            swept.failures,
        ),
        (
            "sweep_incomplete",
            "gauge",
            "Withdrawals that the last sweep could not end.",
            swept.incomplete as u64,
        ),
        (
            "sweep_unknown_uids",
            "gauge",
            "Uids with processes of which nobody knows whether they are an IAM user's.",
            swept.unknown_uids.len() as u64,
        ),
        (
            "not_in_force",
            "gauge",
            "Lines of PAM and settings of sshd that the last sweep found not in force.",
            swept.not_in_force.len() as u64,
        ),
        (
            "not_in_force_sweeps_total",
            "counter",
            "Sweeps that found a line of PAM or a setting of sshd not in force.",
            swept.not_in_force_total,
        ),
    ];
    let age =
        swept.age().map(|age| ("sweep_age_seconds", "gauge", "Seconds since the last sweep ended.", age));
    always.into_iter().chain(age).map(Metric::one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_help_text_a_type_and_a_number() {
        let status = Status {
            version: "0.1.0".into(),
            uptime: 7,
            roster_age: None,
            roster_users: 2,
            known: 1,
            cache_age: Some(4),
            cache_bytes: 900,
            cache_error: None,
            calls: 9,
            errors: 0,
            last_error: None,
            last_answer: Some(3),
            unknown_left: 30,
            unknown_per_minute: 30,
            backing_off: 0,
            questions: BTreeMap::from([("keys".into(), 4)]),
            decisions: BTreeMap::from([("login in-group".into(), 5)]),
        };
        let text = metrics(&status, &Swept { overruns: 3, ..Swept::default() });
        assert!(text.contains("pam_iam_sweep_overruns_total 3\n"), "{text}");
        assert!(text.contains("pam_iam_decisions_total{policy=\"login\",reason=\"in-group\"} 5\n"), "{text}");
        assert!(
            text.contains("pam_iam_iam_last_answer_seconds 3\n") && !text.contains("roster_age"),
            "{text}"
        );
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<u64>().is_ok() && name.starts_with("pam_iam_"), "{line}");
            let bare = name.split('{').next().unwrap();
            assert!(text.contains(&format!("# TYPE {bare} ")), "{line}");
        }
    }
}
