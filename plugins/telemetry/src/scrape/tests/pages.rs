//! What becomes of a page.

use expect_test::expect;
use proptest::prelude::*;

use super::*;

#[test]
fn every_type_of_openmetrics_becomes_its_metric() {
    let page = "# HELP foo_seconds Time \\\"spent\\\"\n# TYPE foo_seconds counter\n# UNIT foo_seconds seconds\n\
        foo_seconds_total{a=\"b\"} 17.5 999.5 # {trace_id=\"0af7651916cd43dd8448eb211c80319c\",span_id=\"b7ad6b7169203331\",x=\"y\"} 5 998\n\
        foo_seconds_created{a=\"b\"} 900.25\nfoo_seconds_total{a=\"c\"} 3\nfoo_seconds_created{a=\"c\"} 901\n\
        # TYPE temp gauge\n# UNIT temp celsius\n# TYPE g_celsius gauge\n# UNIT g_celsius celsius\ng_celsius{e=\"\"} -3\n\
        # TYPE h histogram\nh_bucket{le=\"0.5\",p=\"x\"} 1 # {id=\"e\"} 0.25\nh_bucket{le=\"1\",p=\"x\"} 1\nh_bucket{le=\"+Inf\",p=\"x\"} 4\n\
        h_count{p=\"x\"} 4\nh_sum{p=\"x\"} 9.5\nh_created{p=\"x\"} 800\nh_bucket{le=\"+Inf\",p=\"y\"} 0\nh_count{p=\"y\"} 0\n\
        # TYPE s summary\ns{quantile=\"0.5\"} 1.5\ns{quantile=\"0.99\"} NaN\ns_count 7\ns_sum 8\ns_created 700\ns_count{z=\"1\"} 2\n\
        # TYPE i info\ni_info{version=\"1\"} 1\n# TYPE st stateset\nst{st=\"on\"} 1\nst{st=\"off\"} 0\n\
        # TYPE gh gaugehistogram\ngh_bucket{le=\"+Inf\"} 3\ngh_gcount 3\ngh_gsum 4\nu 5\n# EOF\n";
    let page = page.replace("# TYPE temp gauge\n# UNIT temp celsius\n", "");
    expect![[r#"
        resource server.port=8001
        foo_seconds_total monotonic sum (prometheus.type=counter) [s] "Time \"spent\""
          {a=b} 17.5 from 900250 at 999500 # {x=y} 5.0 at 998000 ids=16/8
          {a=c} 3.0 from 901000
        g_celsius gauge (prometheus.type=gauge) [Cel]
          {} -3.0
        h histogram (prometheus.type=histogram)
          {p=x} [0.5, 1.0] [1, 0, 3] count=4 sum=Some(9.5) from 800000 # {id=e} 0.25 ids=0/0
          {p=y} [] [0] count=0 sum=None
        s summary (prometheus.type=summary)
          {} [(0.5, 1.5), (0.99, NaN)] count=7 sum=8 from 700000
          {z=1} [] count=2 sum=0
        i_info sum (prometheus.type=info)
          {version=1} 1.0
        st sum (prometheus.type=stateset)
          {st=on} 1.0
          {st=off} 0.0
        gh_bucket gauge (prometheus.type=gaugehistogram)
          {le=+Inf} 3.0
        gh_gcount gauge (prometheus.type=gaugehistogram)
          {} 3.0
        gh_gsum gauge (prometheus.type=gaugehistogram)
          {} 4.0
        u gauge (prometheus.type=unknown)
          {} 5.0
    "#]]
    .assert_eq(&Rig::new("").open_metrics(&page));
}

#[test]
fn a_text_page_keeps_its_names_and_its_types_whatever_stands_between() {
    let page = "# TYPE a_total counter\na_total{x=\"1\"} 1\n# TYPE b gauge\nb 2\na_total{x=\"2\"} 3\nc 4\n# HELP d only help\nd 5\n\
        # TYPE h histogram\nh_bucket{le=\"2\"} 2\nh_bucket{le=\"1\"} 1\nh_sum 3\nh_count 2\nh_sumo 1\n# TYPE t counter\nt 1 999000\n";
    expect![[r#"
        resource server.port=8001
        a_total monotonic sum (prometheus.type=counter)
          {x=1} 1.0
        b gauge (prometheus.type=gauge)
          {} 2.0
        a_total monotonic sum (prometheus.type=counter)
          {x=2} 3.0
        c gauge (prometheus.type=unknown)
          {} 4.0
        d gauge (prometheus.type=unknown) "only help"
          {} 5.0
        h histogram (prometheus.type=histogram)
          {} [1.0, 2.0] [1, 1, 0] count=2 sum=Some(3.0)
        h_sumo gauge (prometheus.type=unknown)
          {} 1.0
        t monotonic sum (prometheus.type=counter)
          {} 1.0 at 999000
    "#]]
    .assert_eq(&Rig::new("").text(page));
}

#[test]
fn histograms_that_are_none_are_left_out_and_counted() {
    let page = "# TYPE h histogram\nh_bucket{k=\"falls\",le=\"1\"} 5\nh_bucket{k=\"falls\",le=\"2\"} 4\nh_count{k=\"falls\"} 5\n\
        h_bucket{k=\"nocount\",le=\"1\"} 5\nh_bucket{k=\"less\",le=\"1\"} 5\nh_count{k=\"less\"} 4\n\
        h_bucket{k=\"nole\"} 5\nh_count{k=\"nole\"} 5\nh_bucket{k=\"word\",le=\"x\"} 5\nh_count{k=\"word\"} 5\nh_count{k=\"bare\"} 3\n\
        h_bucket{k=\"twice\",le=\"1\"} 1\nh_bucket{k=\"twice\",le=\"1\"} 9\nh_count{k=\"twice\"} 3\nh_count{k=\"nan\"} NaN\n\
        # TYPE s summary\ns{quantile=\"0.5\"} 1\n";
    let mut rig = Rig::new("");
    let (_, outcome) = rig.read(page, Dialect::Text, Mode::Points).unwrap();
    assert_eq!(outcome.invalid, 7);
    expect![[r#"
        resource server.port=8001
        h histogram (prometheus.type=histogram)
          {k=bare} [] [3] count=3 sum=None
          {k=twice} [1.0] [1, 2] count=3 sum=None
    "#]]
    .assert_eq(&rig.text(page));
}

#[test]
fn reserved_names_are_moved_in_whatever_form_they_come() {
    let page = "a{instance=\"i\",job=\"j\",namespace=\"n\",plugin=\"p\",scrape_job=\"s\",oblv_deployment_name=\"o\",exported_job=\"e\"} 1\n\
        {\"b\",\"oblv.deployment.name\"=\"o\"} 1\nnitro_enclave_cpu_usage 0.9\n{\"nitro.enclave.cpu_usage\"} 0.9\nenclave_x 1\n";
    expect![[r#"
        resource server.port=8001
        a gauge (prometheus.type=unknown)
          {exported_instance=i,exported_exported_job=j,exported_namespace=n,exported_plugin=p,exported_scrape_job=s,exported_oblv_deployment_name=o,exported_job=e} 1.0
        b gauge (prometheus.type=unknown)
          {exported_oblv.deployment.name=o} 1.0
        exported_nitro_enclave_cpu_usage gauge (prometheus.type=unknown)
          {} 0.9
        exported_nitro.enclave.cpu_usage gauge (prometheus.type=unknown)
          {} 0.9
        exported_enclave_x gauge (prometheus.type=unknown)
          {} 1.0
    "#]].assert_eq(&Rig::new("").text(page));
}

#[test]
fn the_page_or_the_target_wins_as_honor_labels_says() {
    let page = "a{team=\"page\",x=\"1\"} 1\na{x=\"2\"} 1\n";
    let groups = "static_configs: [{targets: ['localhost:8001'], labels: {team: target, zone: z}}]";
    expect![[r#"
        resource server.port=8001
        a gauge (prometheus.type=unknown)
          {team=target,zone=z,exported_team=page,x=1} 1.0
          {team=target,zone=z,x=2} 1.0
    "#]]
    .assert_eq(&Rig::new(groups).text(page));
    expect![[r#"
        resource server.port=8001
        a gauge (prometheus.type=unknown)
          {zone=z,team=page,x=1} 1.0
          {team=target,zone=z,x=2} 1.0
    "#]]
    .assert_eq(&Rig::new(&format!("honor_labels: true\n{groups}")).text(page));
}

#[test]
fn metric_relabelling_is_prometheus() {
    let rules = "metric_relabel_configs:
- {source_labels: [__name__], regex: 'go_.*', action: drop}
- {source_labels: [code], regex: '(\\d)..', target_label: class, replacement: '${1}xx'}
- {regex: code, action: labeldrop}
- {source_labels: [__name__], regex: 'old_(.*)', target_label: __name__, replacement: 'new_$1'}
- {regex: 'k8s_(.+)', action: labelmap}
- {source_labels: [a, b], separator: '-', target_label: ab}
- {source_labels: [method], target_label: method, action: lowercase}
- {source_labels: [instance], regex: 'localhost:(.*)', target_label: instance, replacement: 'port $1'}
- {source_labels: [ab], regex: drop-me, action: drop}";
    let page = "go_threads 1\nhttp_total{code=\"200\",method=\"GET\",a=\"x\",b=\"y\"} 1\nhttp_total{code=\"2000\",k8s_pod=\"p\"} 2\n\
        # TYPE old_total counter\nold_total{a=\"only\"} 3\nx{a=\"drop\",b=\"me\"} 4\ny{job=\"j\",namespace=\"n\"} 5\n";
    let mut rig = Rig::new(rules);
    expect![[r#"
        resource server.port=8001
        http_total gauge (prometheus.type=unknown)
          {scrape_target=port 8001,method=get,a=x,b=y,ab=x-y,class=2xx} 1.0
          {scrape_target=port 8001,k8s_pod=p,ab=-,pod=p} 2.0
        new_total gauge (prometheus.type=unknown)
          {scrape_target=port 8001,a=only,ab=only-} 3.0
        y gauge (prometheus.type=unknown)
          {scrape_target=port 8001,exported_job=j,exported_namespace=n,ab=-} 5.0
    "#]]
    .assert_eq(&rig.text(page));
    let (_, outcome) = rig.read(page, Dialect::Text, Mode::Points).unwrap();
    assert_eq!((outcome.scraped, outcome.kept), (6, 4));
}

#[test]
fn the_other_actions_do_what_prometheus_documents() {
    let page = "a{x=\"1\",y=\"1\",keep=\"K\"} 1\na{x=\"1\",y=\"2\",keep=\"K\"} 2\n";
    let check = |rules: &str, expected: &expect_test::Expect| {
        let shown = Rig::new(&format!("metric_relabel_configs: [{rules}]")).text(page);
        let lines = shown
            .lines()
            .filter_map(|line| line.strip_prefix("  "))
            .fold(String::new(), |all, line| all + line + "\n");
        expected.assert_eq(&lines);
    };
    check(
        "{source_labels: [x], target_label: y, action: keepequal}",
        &expect![[r#"
          {x=1,y=1,keep=K} 1.0
    "#]],
    );
    check(
        "{source_labels: [x], target_label: y, action: dropequal}",
        &expect![[r#"
          {x=1,y=2,keep=K} 2.0
    "#]],
    );
    check(
        "{source_labels: [y], regex: '2', action: keep}",
        &expect![[r#"
          {x=1,y=2,keep=K} 2.0
    "#]],
    );
    check(
        "{regex: '__name__|x|y', action: labelkeep}",
        &expect![[r#"
          {x=1,y=1} 1.0
          {x=1,y=2} 2.0
    "#]],
    );
    check(
        "{source_labels: [keep], target_label: up, action: uppercase}, {target_label: x, replacement: ''}",
        &expect![[r#"
          {y=1,keep=K,up=K} 1.0
          {y=2,keep=K,up=K} 2.0
    "#]],
    );
    check(
        "{source_labels: [x], regex: '[[x1]', target_label: m, replacement: 'a$$b'}",
        &expect![[r#"
          {x=1,y=1,keep=K,m=a$b} 1.0
          {x=1,y=2,keep=K,m=a$b} 2.0
    "#]],
    );
    check(
        "{source_labels: [x], regex: 'nothing', target_label: m}",
        &expect![[r#"
          {x=1,y=1,keep=K} 1.0
          {x=1,y=2,keep=K} 2.0
    "#]],
    );
}

#[test]
fn the_second_of_two_equal_series_is_left_out_unless_its_time_is_another() {
    let page =
        "a{x=\"1\",y=\"2\"} 1\na{y=\"2\",x=\"1\"} 2\na{x=\"2\"} 1\nt 1 999000\nt 2 999001\nt 3 999000\n";
    let mut rig = Rig::new("");
    let (_, outcome) = rig.read(page, Dialect::Text, Mode::Points).unwrap();
    assert_eq!((outcome.scraped, outcome.repeated), (6, 2));
    expect![[r#"
        resource server.port=8001
        a gauge (prometheus.type=unknown)
          {x=1,y=2} 1.0
          {x=2} 1.0
        t gauge (prometheus.type=unknown)
          {} 1.0 at 999000
          {} 2.0 at 999001
    "#]]
    .assert_eq(&rig.text(page));
}

#[test]
fn times_of_a_page_are_kept_or_not() {
    let page = "a 1 999000\n";
    assert!(Rig::new("").text(page).contains("1.0 at 999000"));
    assert!(!Rig::new("honor_timestamps: false").text(page).contains(" at "));
}

#[test]
fn what_is_gone_from_a_page_ends_once() {
    let before = "# TYPE c counter\nc{x=\"1\"} 1\nc{x=\"2\"} 1 5\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 1\nh_count 2\n\
        # TYPE s summary\ns{quantile=\"0.5\"} 1\ns_count 3\n# TYPE g gauge\ng 1\ng 1\n";
    let mut rig = Rig::new("");
    assert_eq!(rig.ends(before, before), "");
    // Other bounds are other series.
    let after = "# TYPE c counter\nc{x=\"1\"} 9\n# TYPE h histogram\nh_bucket{le=\"2\"} 1\nh_count 2\n# TYPE g counter\ng 1\n";
    expect![[r#"
        resource server.port=8001
        c monotonic sum (prometheus.type=counter)
          {x=2} - END
        h histogram (prometheus.type=histogram)
          {} [1.0] [0, 0] count=0 sum=None END
        s summary (prometheus.type=summary)
          {} [(0.5, 0.0)] count=0 sum=0 END
        g gauge (prometheus.type=gauge)
          {} - END
    "#]]
    .assert_eq(&rig.ends(before, after));
}

#[test]
fn a_limit_that_is_exceeded_fails_the_page() {
    let error = |job: &str, page: &str| {
        Rig::new(job).read(page, Dialect::Text, Mode::Points).unwrap_err().to_string()
    };
    assert_eq!(error("sample_limit: 2", "a 1\nb 1\nc 1\n"), "more than 2 samples");
    assert_eq!(error("label_limit: 4", "a{b=\"1\",c=\"2\"} 1\n"), "a sample of a has more than 4 labels");
    assert_eq!(
        error("label_value_length_limit: 5", "a{b=\"123456\"} 1\n"),
        "a label's value in a sample of a is longer than 5 bytes"
    );
    assert_eq!(
        error("label_name_length_limit: 5", "a{abcdef=\"1\"} 1\n"),
        "a label's name in a sample of a is longer than 5 bytes"
    );
    let long = format!("a 1\na{{b=\"{}\"}} 1\n", "x".repeat(1 << 20));
    assert_eq!(error("", &long), "a label's value in a sample of a is longer than 4096 bytes");
    // Counted behind the rules.
    let rules =
        "sample_limit: 2\nmetric_relabel_configs: [{source_labels: [__name__], regex: b, action: drop}]";
    assert!(Rig::new(rules).read("a 1\nb 1\nc 1\n", Dialect::Text, Mode::Points).is_ok());
}

#[test]
fn target_info_is_the_resource_and_scope_labels_are_the_scope() {
    let page = "# TYPE target info\ntarget_info{service_version=\"2\",service_name=\"x\",namespace=\"n\"} 1\n\
        # TYPE a gauge\na{otel_scope_name=\"lib\",otel_scope_version=\"3\",x=\"1\"} 1\na{otel_scope_name=\"lib\",otel_scope_version=\"3\",x=\"2\"} 1\n\
        a{x=\"3\"} 1\nb 1\n# EOF\n";
    expect![[r#"
        resource server.port=8001,service_version=2,exported_service_name=x,exported_namespace=n
        scope lib@3
        a gauge (prometheus.type=gauge)
          {x=1} 1.0
          {x=2} 1.0
        a gauge (prometheus.type=gauge)
          {x=3} 1.0
        b gauge (prometheus.type=unknown)
          {} 1.0
    "#]]
    .assert_eq(&Rig::new("").open_metrics(page));
}

#[test]
fn a_long_page_is_cut_into_requests_that_collectors_take() {
    use std::fmt::Write as _;
    let mut page = "# TYPE a counter\n".to_owned();
    for n in 0..25_000 {
        writeln!(page, "a{{path=\"/api/v1/items/{n}\",method=\"GET\"}} {n}").unwrap();
    }
    let mut rig = Rig::new("sample_limit: 100000");
    let (requests, outcome) = rig.read(&page, Dialect::Text, Mode::Points).unwrap();
    assert_eq!(requests.iter().map(|request| request.items).sum::<u64>(), 25_000);
    assert_eq!(outcome.series.len(), 25_000);
    assert!(requests.len() >= 3);
    for request in &requests {
        assert!(request.items <= 10_000);
        let export = decode(request);
        let scopes = &export.resource_metrics[0].scope_metrics;
        assert_eq!((scopes.len(), scopes[0].metrics[0].name.as_str()), (1, "a"));
    }
}

#[test]
fn a_failed_page_leaves_nothing_in_the_next_request() {
    let mut rig = Rig::new("");
    let (full, _) = rig.read("a 1\n", Dialect::Text, Mode::Points).unwrap();
    assert!(rig.read("h 1\n# TYPE x histogram\nx_count 1\nbroken", Dialect::Text, Mode::Points).is_err());
    let (again, _) = rig.read("a 1\n", Dialect::Text, Mode::Points).unwrap();
    assert_eq!(full, again);
}

proptest! {
    #[test]
    fn whatever_a_page_says_its_requests_decode_and_are_counted(
        lines in prop::collection::vec((0..14_usize, 0..4_u8, any::<f64>(), ".{0,6}"), 0..40),
        open_metrics in any::<bool>(),
        relabelled in any::<bool>(),
    ) {
        let mut page = String::new();
        for (line, n, value, text) in lines {
            let text = text.replace(['\\', '"', '\n'], "'");
            let line = match line {
                0 => format!("# TYPE a{n} counter"),
                1 => format!("# TYPE a{n} histogram"),
                2 => format!("# TYPE a{n} summary"),
                3 => format!("# HELP a{n} {text}"),
                4 => format!("a{n}_total{{x=\"{text}\"}} {value}"),
                5 => format!("a{n}_created{{x=\"{text}\"}} {value}"),
                6 => format!("a{n}_bucket{{le=\"{value}\",x=\"{n}\"}} {n}"),
                7 => format!("a{n}_count{{x=\"{n}\"}} {value}"),
                8 => format!("a{n}_sum{{x=\"{n}\"}} {value}"),
                9 => format!("a{n}{{quantile=\"{value}\"}} {value}"),
                10 => format!("{{\"a{n}\",\"{text}.\"=\"{text}\"}} {value}"),
                11 => format!("a{n}{{otel_scope_name=\"{text}\",job=\"{text}\"}} {value} {n}"),
                12 => format!("target_info{{l=\"{text}\"}} {value}"),
                _ => format!("a{n} {value}"),
            };
            page.push_str(&line);
            page.push('\n');
        }
        let dialect = if open_metrics { Dialect::OpenMetrics } else { Dialect::Text };
        if open_metrics {
            page.push_str("# EOF\n");
        }
        let job = if relabelled {
            "metric_relabel_configs: [{regex: x, replacement: y, action: labelmap}, {source_labels: [x], target_label: job}]"
        } else {
            ""
        };
        let mut rig = Rig::new(job);
        if let Ok((requests, outcome)) = rig.read(&page, dialect, Mode::Points) {
            let points: u64 = requests.iter().map(|request| crate::otlp::count(&decode(request))).sum();
            let (ends, _) = rig.read(&page, dialect, Mode::Ends(&Numbers::default())).unwrap();
            let ended: u64 = ends.iter().map(|request| request.items).sum();
            // One end for each series; with times of their own, series have several points.
            prop_assert_eq!(ended, outcome.series.len() as u64);
            prop_assert!(points >= ended);
            let (none, _) = rig.read(&page, dialect, Mode::Ends(&outcome.series)).unwrap();
            prop_assert!(none.is_empty());
        }
    }
}
