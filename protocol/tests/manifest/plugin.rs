//! A plugin's own fields: ports, grants, resources, security, and the vendor's nested form.

use expect_test::expect;

use crate::{check, parsed, plugin, with_plugin, with_spec, with_telemetry};

#[test]
fn unknown_fields_name_the_nearest_known_one() {
    check(
        &with_spec(
            "userPlugin: []\nuserPlugins: [{name: a, imge: b, image: x, Command: [c], zzzzzz: 1, outboundConnection: []}]\nlog: {}",
        ),
        expect![[r#"
            5:3: spec.userPlugin: unknown field "userPlugin"; did you mean userPlugins?
            6:27: spec.userPlugins[0].imge: unknown field "imge"; did you mean image?
            6:46: spec.userPlugins[0].Command: unknown field "Command"; did you mean command?
            6:60: spec.userPlugins[0].zzzzzz: unknown field "zzzzzz"
            6:71: spec.userPlugins[0].outboundConnection: unknown field "outboundConnection"; did you mean outboundConnections?
            7:3: spec.log: unknown field "log"; did you mean logs?
        "#]],
    );
    check(
        &with_plugin("\"a.b\": 1\n\"\": 2\n\"\\e[31m\": 3"),
        expect![[r#"
        8:7: spec.userPlugins[0]["a.b"]: unknown field "a.b"
        9:7: spec.userPlugins[0][""]: unknown field ""
        10:7: spec.userPlugins[0]["\u{1b}[31m"]: unknown field "\u{1b}[31m"
    "#]],
    );
}

#[test]
fn the_vendors_plugin_schema_is_accepted_in_both_forms() {
    let flat = "image: x\ncommand: [run]\nenv: [{name: A, value: b}]\nports: [{containerPort: 1}]";
    let nested = "kind: LoggingPlugin\nname: fluentbit\nnamespace: default\nimage: x\nimagePullSecret: regcred\nproxyPort: 80\nspec:\n  command: [run]\n  args: [a]\n  env: [{name: A, value: b}]\n  ports: [{containerPort: 1}]\n  volumes: []\n  outboundConnections: []\n  resources: {}\n  securityContext: {}\n  logsAccess: false";
    let with = |fields: &str| with_telemetry(fields).replace("telemetry:", "logging:");
    let (flat, nested) = (parsed(&with(flat)), parsed(&with(nested)));
    let (flat, nested) = (flat.plugin("logging").unwrap(), nested.plugin("logging").unwrap());
    assert_eq!((&flat.command, &flat.env, &flat.ports), (&nested.command, &nested.env, &nested.ports));
    assert_eq!(nested.display_name.as_deref(), Some("fluentbit"));
}

#[test]
fn a_field_is_given_in_one_place_and_display_fields_only_outside() {
    check(
        &with_telemetry(
            "image: x\nkind: 7\nproxyPort: 0\ncommand: [a]\nspec:\n  command: [b]\n  imagePullSecret: c\n  comand: [d]\nlogsAccess: maybe",
        ),
        expect![[r#"
            9:13: spec.plugins.telemetry.kind: expected a string, found the number 7; put it in quotes
            10:18: spec.plugins.telemetry.proxyPort: expected a whole number from 1 to 65535, found the number 0
            13:18: spec.plugins.telemetry.spec.command: given twice: here and at spec.plugins.telemetry.command
            14:9: spec.plugins.telemetry.spec.imagePullSecret: unknown field "imagePullSecret"
            15:9: spec.plugins.telemetry.spec.comand: unknown field "comand"; did you mean command?
            16:19: spec.plugins.telemetry.logsAccess: expected true or false, found the string "maybe"
        "#]],
    );
    check(
        &with_plugin("spec: {command: [x]}\nkind: y"),
        expect![[r#"
        8:7: spec.userPlugins[0].spec: unknown field "spec"
        9:7: spec.userPlugins[0].kind: unknown field "kind"
    "#]],
    );
}

#[test]
fn ports_are_tcp_and_declared_once() {
    let ports =
        plugin("ports: [{containerPort: 80, hostPort: 8080, protocol: TCP}, {containerPort: 81}]").ports;
    assert_eq!(
        ports.iter().map(|p| (p.container_port, p.host_port)).collect::<Vec<_>>(),
        [(80, Some(8080)), (81, None)]
    );
    check(
        &with_plugin(
            "ports:
- {containerPort: 80, protocol: UDP}
- {containerPort: 80, protocol: tcp}
- {hostPort: 1, name: web}
- {containerPort: 81, hostPort: 7}
- {containerPort: 82, hostPort: 7}",
        ),
        expect![[r#"
            9:39: spec.userPlugins[0].ports[0].protocol: "UDP" is not supported: TCP only
            10:25: spec.userPlugins[0].ports[1].containerPort: containerPort 80 is declared twice in this plugin
            10:39: spec.userPlugins[0].ports[1].protocol: "tcp" is not supported: TCP only (write it as TCP)
            11:9: spec.userPlugins[0].ports[2]: the field containerPort is required
            11:23: spec.userPlugins[0].ports[2].name: unknown field "name"
            13:39: spec.userPlugins[0].ports[4].hostPort: hostPort 7 is already used at spec.userPlugins[0].ports[3].hostPort
        "#]],
    );
}

#[test]
fn access_to_the_supervisor_is_granted_by_word() {
    let access =
        |text: &str| parsed(text).plugins[0].access.iter().map(|a| a.word()).collect::<Vec<_>>().join(" ");
    assert_eq!(access(&with_plugin("")), "");
    assert_eq!(access(&with_plugin("supervisorAccess: [logs, status]")), "status logs");
    assert_eq!(access(&with_telemetry("env: []")), "metrics status");
    assert_eq!(access(&with_telemetry("supervisorAccess: []")), "");
    check(
        &with_plugin("supervisorAccess: [metric, root]"),
        expect![[r#"
        8:26: spec.userPlugins[0].supervisorAccess[0]: expected one of metrics, status, logs, found "metric"; did you mean metrics?
        8:34: spec.userPlugins[0].supervisorAccess[1]: expected one of metrics, status, logs, found "root"
    "#]],
    );
}

#[test]
fn limits_are_quantities() {
    expect![[r#"
        Limits {
            cpu_millis: Some(
                500,
            ),
            memory_bytes: Some(
                268435456,
            ),
            pids: Some(
                100,
            ),
        }
    "#]]
    .assert_debug_eq(&plugin("resources: {limits: {cpu: 500m, memory: 256Mi, pids: 100}}").limits);
    expect![[r#"
        Limits {
            cpu_millis: Some(
                1500,
            ),
            memory_bytes: Some(
                1000000000,
            ),
            pids: None,
        }
    "#]]
    .assert_debug_eq(&plugin("resources: {limits: {cpu: 1.5, memory: '1e9'}}").limits);
    check(
        &with_plugin("resources: {limits: {cpu: 0, memory: 1.5, pids: 0}, requests: {cpu: x, gpu: 1}}"),
        expect![[r#"
            8:33: spec.userPlugins[0].resources.limits.cpu: must be more than 0
            8:44: spec.userPlugins[0].resources.limits.memory: "1.5" is finer than this field can be: a whole number
            8:55: spec.userPlugins[0].resources.limits.pids: expected a whole number from 1 to 4194304, found the number 0
            8:75: spec.userPlugins[0].resources.requests.cpu: "x" is no quantity: write for example 2, 500m, 256Mi or 1.5Gi
            8:78: spec.userPlugins[0].resources.requests.gpu: unknown field "gpu"; did you mean cpu?
        "#]],
    );
    check(
        &with_plugin("resources: {limits: {cpu: 1, memory: 1Mi}, requests: {cpu: 1, memory: 2Mi}}"),
        expect![[r#"
            8:18: spec.userPlugins[0].resources: a request is larger than its limit
        "#]],
    );
}

#[test]
fn a_security_context_names_ids_and_capabilities() {
    expect![[r#"
        Security {
            user: Some(
                1000,
            ),
            group: Some(
                0,
            ),
            read_only_root: true,
            capabilities_add: {
                "NET_BIND_SERVICE",
            },
            capabilities_drop: {
                "ALL",
                "KILL",
            },
        }
    "#]].assert_debug_eq(
        &plugin("securityContext: {runAsUser: 1000, runAsGroup: 0, readOnlyRootFilesystem: true, capabilities: {add: [NET_BIND_SERVICE], drop: [ALL, CAP_KILL]}}").security,
    );
    check(
        &with_plugin(
            "securityContext: {runAsUser: -1, runAsGroup: 2147483648, privileged: true, readOnlyRootFilesystem: 'true', capabilities: {add: [NET_ADMN, FLY], drp: []}}",
        ),
        expect![[r#"
            8:36: spec.userPlugins[0].securityContext.runAsUser: expected a whole number from 0 to 2147483647, found the number -1
            8:52: spec.userPlugins[0].securityContext.runAsGroup: expected a whole number from 0 to 2147483647, found the number 2147483648
            8:64: spec.userPlugins[0].securityContext.privileged: unknown field "privileged"
            8:106: spec.userPlugins[0].securityContext.readOnlyRootFilesystem: expected true or false, found the string "true"; remove the quotes
            8:135: spec.userPlugins[0].securityContext.capabilities.add[0]: unknown capability "NET_ADMN"; did you mean NET_ADMIN?
            8:145: spec.userPlugins[0].securityContext.capabilities.add[1]: unknown capability "FLY"
            8:151: spec.userPlugins[0].securityContext.capabilities.drp: unknown field "drp"; did you mean drop?
        "#]],
    );
}
