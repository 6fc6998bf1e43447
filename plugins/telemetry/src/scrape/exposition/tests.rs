//! Pages in, entries out. The tables of what is valid and what is not follow the inputs of Prometheus' own
//! parser tests (model/textparse at v3), so that a page fails here exactly if it fails there.

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// A page's entries, a line each; or the error behind those before it.
fn show(text: &str, dialect: Dialect) -> String {
    let mut parser = Parser::new(text, dialect);
    let mut out = String::new();
    loop {
        match parser.next() {
            Ok(None) => return out,
            Err(error) => {
                writeln!(out, "error: {error}").unwrap();
                return out;
            }
            Ok(Some(Entry::Help { family, text })) => writeln!(out, "help {family} {text:?}").unwrap(),
            Ok(Some(Entry::Type { family, kind })) => writeln!(out, "type {family} {}", kind.word()).unwrap(),
            Ok(Some(Entry::Unit { family, unit })) => writeln!(out, "unit {family} {unit:?}").unwrap(),
            Ok(Some(Entry::Sample(sample))) => {
                let list = |labels: &[Label<'_>]| {
                    let words: Vec<_> = labels.iter().map(|l| format!("{}={:?}", l.name, l.value)).collect();
                    words.join(",")
                };
                write!(out, "{}{{{}}} {}", sample.name, list(parser.labels()), sample.value).unwrap();
                if let Some(time) = sample.time {
                    write!(out, " @{time}").unwrap();
                }
                if let Some(exemplar) = sample.exemplar {
                    write!(out, " # {{{}}} {}", list(parser.exemplar_labels()), exemplar.value).unwrap();
                    if let Some(time) = exemplar.time {
                        write!(out, " @{time}").unwrap();
                    }
                }
                out.push('\n');
            }
        }
    }
}

fn check(text: &str, dialect: Dialect, expected: &Expect) {
    expected.assert_eq(&show(text, dialect));
}

#[test]
fn the_text_format_is_read_with_its_blanks_commas_comments_and_times() {
    let page = "# HELP d A summary.\n# \tTYPE d summary\nd{quantile=\"0\"} 4.9351e-05\nd{quantile=\"0.25\",} 7.4e-05\n\
        d{ quantile=\"0.9\", a=\"b\"} 8.3835e-05\n# Hrandom comment\n#\n# HELP nohelp1\n# HELP nohelp2 \n\
        d { quantile = \"2.0\" a = \"b\" } 8\n\n  some:aggregate:rate5m{a_b=\"c\"}\t1\n# HELP g back\\\\slash\\nline \\\"q\\\"\n\
        # TYPE g gauge\ng 33  \t123123\n_m{_l=\"foo\"} +Inf\nt{label=\"\\\"bar\\\"\\n\\\\\\x\"} -inf\nnan NaN\n\
        # UNIT is a comment here\n# TYPE u untyped\nu 1.e3\n# EOF is one too\nnul{a=\"abc\0\"} .5";
    check(
        page,
        Dialect::Text,
        &expect![[r#"
        help d "A summary."
        type d summary
        d{quantile="0"} 0.000049351
        d{quantile="0.25"} 0.000074
        d{quantile="0.9",a="b"} 0.000083835
        help nohelp1 ""
        help nohelp2 ""
        d{quantile="2.0",a="b"} 8
        some:aggregate:rate5m{a_b="c"} 1
        help g "back\\slash\nline \\\"q\\\""
        type g gauge
        g{} 33 @123123
        _m{_l="foo"} inf
        t{label="\"bar\"\n\\\\x"} -inf
        nan{} NaN
        type u unknown
        u{} 1000
        nul{a="abc\0"} 0.5
    "#]],
    );
}

#[test]
fn openmetrics_is_read_with_units_exemplars_and_all_its_types() {
    let page = "# HELP d escape \\ \\n \\\\ \\\" \\x\n# TYPE d_seconds summary\n# UNIT d_seconds seconds\n# UNIT nounit \n\
        d_seconds{quantile=\"0.5\",a=\"b\"} 8.3835e-05\ng 33 123.123\nneg 1 -1.5\n# TYPE gh gaugehistogram\n\
        gh_bucket{le=\"+Inf\"} 1 # {id=\"a\",xx=\"yy\"} 4 123.123\n# TYPE ii info\nii_info{foo=\"bar\"} 1\n# TYPE ss stateset\n\
        ss{ss=\"foo\"} 1\n# TYPE un unknown\n# TYPE foo counter\nfoo_total 17.0 1520879607.789 # {id=\"x\"} 5\n\
        foo_created 1520872607.123\nq_count 1 # {\"id.thing\"=\"t\",other=\"hello\"} 4\nempty 1 # {} 2\n# EOF\n";
    check(
        page,
        Dialect::OpenMetrics,
        &expect![[r#"
        help d "escape \\ \n \\ \" \\x"
        type d_seconds summary
        unit d_seconds "seconds"
        unit nounit ""
        d_seconds{quantile="0.5",a="b"} 0.000083835
        g{} 33 @123123
        neg{} 1 @-1500
        type gh gaugehistogram
        gh_bucket{le="+Inf"} 1 # {id="a",xx="yy"} 4 @123123
        type ii info
        ii_info{foo="bar"} 1
        type ss stateset
        ss{ss="foo"} 1
        type un unknown
        type foo counter
        foo_total{} 17 @1520879607789 # {id="x"} 5
        foo_created{} 1520872607.123
        q_count{} 1 # {id.thing="t",other="hello"} 4
        empty{} 1 # {} 2
    "#]],
    );
}

#[test]
fn quoted_names_are_read_in_both_formats() {
    let page = "# HELP \"go.gc\" A summary\n# TYPE \"go.gc\" counter\n{\"go.gc\",quantile=\"0\"} 1\n{\"go.gc\"} 99\n\
        {q=\"0.9\",\"http.status\",a=\"b\"} 3\n{\"Heizöl 10€ \\\"interesting\\\" {character\\nchoices}\",\"strange©™\\n'quoted' \\\"name\\\"\"=\"6\"} 10.0\n# EOF\n";
    check(
        page,
        Dialect::OpenMetrics,
        &expect![[r#"
        help go.gc "A summary"
        type go.gc counter
        go.gc{quantile="0"} 1
        go.gc{} 99
        http.status{q="0.9",a="b"} 3
        Heizöl 10€ "interesting" {character
        choices}{strange©™
        'quoted' "name"="6"} 10
    "#]],
    );
    assert_eq!(show(page, Dialect::Text), show(page, Dialect::OpenMetrics));
}

/// Valid as a whole.
const VALID: [(Dialect, &str); 14] = [
    (Dialect::Text, ""),
    (Dialect::Text, "\n"),
    (Dialect::Text, "\n\n#\n"),
    (Dialect::Text, "null_byte_metric{a=\"abc\0\"} 1"),
    (Dialect::Text, "a{b=\"\0ss\"} 1\n"),
    (Dialect::Text, "a{b=\"\0\"} 1\n"),
    (Dialect::Text, "a{} 1"),
    (Dialect::Text, "a{b=\"two\nlines\"} 1"),
    (Dialect::OpenMetrics, "# EOF"),
    (Dialect::OpenMetrics, "# EOF\n"),
    (Dialect::OpenMetrics, "null_byte_metric{a=\"abc\0\"} 1\n# EOF\n"),
    (Dialect::OpenMetrics, "a{b=\"\0ss\"} 1\n# EOF\n"),
    (Dialect::OpenMetrics, "a{b=\"\0\"} 1\n# EOF"),
    (Dialect::OpenMetrics, "a{b=\"c\",} 1\n# EOF\n"),
];

#[test]
fn what_prometheus_takes_is_taken() {
    for (dialect, text) in VALID {
        assert!(!show(text, dialect).contains("error"), "{dialect:?} {text:?}: {}", show(text, dialect));
    }
}

/// The line of the first mistake, and the page.
const TEXT_ERRORS: [(usize, &str); 36] = [
    (1, "a"),
    (1, "a{b='c'} 1\n"),
    (1, "a{b=\n"),
    (1, "{\"a\", \"b = \"c\"}"),
    (1, "{\"a\",b\\nc=\"d\"} 1"),
    (1, "a true\n"),
    (1, "something_weird{problem=\""),
    (1, "empty_label_name{=\"\"} 0"),
    (1, "foo 1_2\n"),
    (1, "foo 0x1p-3\n"),
    (1, "foo 0x1P-3\n"),
    (1, "foo 0x10\n"),
    (1, "foo 0 1_2\n"),
    (1, "{a=\"ok\"} 1"),
    (1, "# TYPE #\n#EOF\n"),
    (1, "# HELP #\n#EOF\n"),
    (1, "a{b=\0\"ssss\"} 1\n"),
    (1, "a{b=\"\0"),
    (1, "a{b\0=\"hiih\"}\t1"),
    (1, "a\0{b=\"ddd\"} 1"),
    (1, "a 0 1\0"),
    (3, "a 1\nb 2\nc x\n"),
    (2, "a 1\na 1 2 3\n"),
    (1, "a 1\r\n"),
    (1, "9a 1\n"),
    (1, "a 1 -5\n"),
    (1, "a 1 1.5\n"),
    (1, "a 1 99999999999999999999\n"),
    (1, "a 1e999\n"),
    (1, "a +NaN\n"),
    (1, "a{b=\"1\",b=\"2\"} 1\n"),
    (1, "a{\"b\"} 1\n"),
    (1, "{\"\"} 1\n"),
    (1, "{\"a\",\"\"=\"b\"} 1\n"),
    (1, "# TYPE a gauge \na 1\n"),
    (1, "# TYPE a info\n"),
];

const OPEN_METRICS_ERRORS: [(usize, &str); 78] = [
    (1, ""),
    (1, "\n"),
    (1, "metric"),
    (1, "metric 1"),
    (2, "metric 1\n"),
    (1, "metric_total 1 # {aa=\"bb\"} 4"),
    (1, "a\n#EOF\n"),
    (1, "\n\n#EOF\n"),
    (1, " a 1\n#EOF\n"),
    (1, "9\n#EOF\n"),
    (1, "# TYPE u untyped\n#EOF\n"),
    (1, "# TYPE c counter \n#EOF\n"),
    (1, "#  TYPE c counter\n#EOF\n"),
    (1, "# TYPE \n#EOF\n"),
    (1, "# TYPE m\n#EOF\n"),
    (1, "# UNIT metric suffix\n#EOF\n"),
    (1, "# UNIT metricsuffix suffix\n#EOF\n"),
    (1, "# UNIT m suffix\n#EOF\n"),
    (1, "# UNIT \n#EOF\n"),
    (1, "# UNIT m\n#EOF\n"),
    (1, "# HELP \n#EOF\n"),
    (1, "# HELP m\n#EOF\n"),
    (1, "a\t1\n#EOF\n"),
    (1, "a 1\t2\n#EOF\n"),
    (1, "a 1 2 \n#EOF\n"),
    (1, "a 1 2 #\n#EOF\n"),
    (1, "a 1 1z\n#EOF\n"),
    (1, " # EOF\n"),
    (2, "# EOF\na 1"),
    (2, "# EOF\n\n"),
    (1, "# EOFa 1"),
    (1, "#\tTYPE c counter\n"),
    (1, "# TYPE c  counter\n"),
    (1, "a 1 1 1\n# EOF\n"),
    (1, "a{b='c'} 1\n# EOF\n"),
    (1, "a{,b=\"c\"} 1\n# EOF\n"),
    (1, "a{b=\"c\"d=\"e\"} 1\n# EOF\n"),
    (1, "a{b=\"c\",,d=\"e\"} 1\n# EOF\n"),
    (1, "a{b=\n# EOF\n"),
    (1, "{\"a\",\"b = \"c\"}\n# EOF\n"),
    (1, "{\"a\",b\\nc=\"d\"} 1\n# EOF\n"),
    (1, "a true\n"),
    (1, "something_weird{problem=\"\n# EOF\n"),
    (1, "empty_label_name{=\"\"} 0\n# EOF\n"),
    (1, "foo 1_2\n\n# EOF\n"),
    (1, "foo 0x1p-3\n\n# EOF\n"),
    (1, "foo 0x1P-3\n\n# EOF\n"),
    (1, "foo 0 1_2\n\n# EOF\n"),
    (1, "custom_metric_total 1 # {aa=bb}\n# EOF\n"),
    (1, "custom_metric_total 1 # {aa=\"bb\"}\n# EOF\n"),
    (1, "custom_metric_total 1 # {aa=\"bb\"}"),
    (1, "custom_metric_total 1 # {bb}"),
    (1, "custom_metric_total 1 # {bb, a=\"dd\"}"),
    (1, "custom_metric_total 1 # {aa=\"bb\",,cc=\"dd\"} 1"),
    (1, "custom_metric_total 1 # {aa=\"bb\"} 1_2"),
    (1, "custom_metric_total 1 # {aa=\"bb\"} 0x1p-3"),
    (1, "custom_metric_total 1 # {aa=\"bb\"} true"),
    (1, "custom_metric_total 1 # {aa=\"bb\",cc=}"),
    (1, "custom_metric_total 1 # {aa=\\\"\u{fffd}\\\"} 9.0"),
    (1, "{b=\"c\",} 1"),
    (1, "a 1 NaN"),
    (1, "a 1 -Inf"),
    (1, "a 1 Inf"),
    (2, "# TYPE hhh histogram\nhhh_bucket{le=\"+Inf\"} 1 # {aa=\"bb\"} 4 NaN"),
    (2, "# TYPE hhh histogram\nhhh_bucket{le=\"+Inf\"} 1 # {aa=\"bb\"} 4 -Inf"),
    (1, "a{b=\0\"ssss\"} 1\n# EOF\n"),
    (1, "a{b=\"\0"),
    (1, "a{b\0=\"hiih\"}\t1"),
    (1, "a\0{b=\"ddd\"} 1"),
    (1, "#"),
    (1, "# H"),
    (1, "custom_metric_total 1 # {b=\0\"ssss\"} 1\n"),
    (1, "a{b=\"c\", d=\"e\"} 1\n# EOF\n"),
    (1, "a{b=\"two\nlines\"} 1\n# EOF\n"),
    (1, "a 1\r\n# EOF\n"),
    (1, "# a comment\n# EOF\n"),
    (2, "a 1\n\n# EOF\n"),
    (1, "a{b=\"1\",b=\"2\"} 1\n# EOF\n"),
];

#[test]
fn every_malformed_line_of_prometheus_own_tests_fails_with_its_line() {
    let text = TEXT_ERRORS.iter().map(|case| (Dialect::Text, case));
    let open_metrics = OPEN_METRICS_ERRORS.iter().map(|case| (Dialect::OpenMetrics, case));
    for (dialect, (line, page)) in text.chain(open_metrics) {
        let shown = show(page, dialect);
        let last = shown.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("error: line {line}: ")), "{dialect:?} {page:?}: {shown}");
    }
}

#[test]
fn a_sample_with_too_many_labels_is_refused_before_they_cost_memory() {
    let labels: Vec<_> = (0..=LABELS_MAX).map(|n| format!("l{n}=\"\"")).collect();
    let page = format!("a{{{}}} 1\n", labels.join(","));
    assert_eq!(show(&page, Dialect::Text), "error: line 1: a sample has too many labels\n");
}

#[test]
fn the_content_type_decides_about_the_format() {
    for (text, dialect) in [
        (Some("application/openmetrics-text; version=1.0.0; charset=utf-8"), Dialect::OpenMetrics),
        (Some("Application/OpenMetrics-Text"), Dialect::OpenMetrics),
        (Some("text/plain; version=0.0.4"), Dialect::Text),
        (Some("text/html"), Dialect::Text),
        (Some(""), Dialect::Text),
        (None, Dialect::Text),
    ] {
        assert_eq!(Dialect::of(text), dialect, "{text:?}");
    }
}

/// Lines that are valid, to be cut, joined and changed.
const SEEDS: [&str; 12] = [
    "# HELP a b\\n\n",
    "# TYPE a counter\n",
    "# UNIT a_s s\n",
    "a_total{b=\"c\\\"\",d=\"\\\\\"} 1 1.5 # {e=\"f\"} 2 3\n",
    "{\"ä.b\",\"c d\"=\"€\"} +Inf\n",
    "a 1e5 123\n",
    "a{} NaN\n",
    "h_bucket{le=\"+Inf\"} 3\n",
    "# EOF\n",
    "\n",
    " \t",
    "\0",
];

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic_or_stand_still(
        parts in prop::collection::vec((0..SEEDS.len(), any::<u16>(), any::<u16>(), any::<char>()), 0..20),
    ) {
        let mut page = String::new();
        for (seed, cut, change, with) in parts {
            let mut line: Vec<char> = SEEDS[seed].chars().collect();
            let length = line.len();
            if cut % 3 == 0 {
                line.truncate(usize::from(cut) % length);
            }
            if change % 2 == 0 && !line.is_empty() {
                let at = usize::from(change) % line.len();
                line[at] = with;
            }
            page.extend(line);
        }
        for dialect in [Dialect::Text, Dialect::OpenMetrics] {
            let mut parser = Parser::new(&page, dialect);
            let mut entries = 0;
            while let Ok(Some(_)) = parser.next() {
                entries += 1;
                prop_assert!(entries <= page.len());
            }
            prop_assert_eq!(parser.next().ok(), Some(None));
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        name in "[a-zA-Z_:][a-zA-Z0-9_:]{0,8}",
        labels in prop::collection::btree_map("[a-zA-Z_][a-zA-Z0-9_]{0,8}", ".{0,12}", 0..6),
        value in any::<f64>(),
        time in prop::option::of(0..i64::MAX / 2000),
    ) {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
        let words: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
        let stamp = time.map(|time| format!(" {time}")).unwrap_or_default();
        let page = format!("{name}{{{}}} {value}{stamp}\n", words.join(","));
        let mut parser = Parser::new(&page, Dialect::Text);
        let Ok(Some(Entry::Sample(sample))) = parser.next() else { panic!("{page}") };
        prop_assert_eq!(sample.name.as_ref(), name.as_str());
        prop_assert!(sample.value.total_cmp(&value).is_eq() || sample.value.is_nan() && value.is_nan());
        prop_assert_eq!(sample.time, time);
        let read: Vec<_> = parser.labels().iter().map(|l| (l.name.to_string(), l.value.to_string())).collect();
        prop_assert_eq!(read, labels.into_iter().collect::<Vec<_>>());
    }
}
