#!/usr/bin/env python3
"""Generates dashboards/*.json with Grafana's Foundation SDK.

Usage: dashboards.py [--check]      --check: prints the files that differ and changes nothing

Queries use variables only in `=~`, so that "All", one value and several values work alike.
"""

import json
import pathlib
import sys

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as queries

HERE = pathlib.Path(__file__).parent / "dashboards"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="$datasource")
WIDTH, HEIGHT = 24, 8


def selected(metric, *matchers, variables=("job", "instance")):
    """A selector with the dashboard's variables."""
    chosen = [f'{name}=~"${name}"' for name in variables]
    return f"{metric}{{{','.join([*chosen, *matchers])}}}"


class Board:
    """A dashboard. Panels fill rows from left to right."""

    def __init__(self, uid, title, description, variables):
        self.names = ("job", "instance", *(name for name, _ in variables))
        self.at, self.last = [0, 0, 0], 0
        links = [
            dashboard.DashboardLink("Weir").type(models.DashboardLinkType.DASHBOARDS).tags(["weir"])
            .include_vars(True).keep_time(True).as_dropdown(True)
        ]
        self.made = (
            dashboard.Dashboard(title).uid(uid).description(description).tags(["weir"]).refresh("30s")
            .time("now-1h", "now").timezone("browser").readonly().links(links)
            .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        )
        for name, query in (
            ("job", "label_values(weir_build_info, job)"),
            ("instance", 'label_values(weir_build_info{job=~"$job"}, instance)'),
            *variables,
        ):
            self.made.with_variable(
                dashboard.QueryVariable(name).label(name.capitalize()).datasource(SOURCE).query(query)
                .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
                .multi(True).include_all(True).all_value(".*")
                .current(models.VariableOption(selected=True, text="All", value="$__all"))
            )

    def of(self, metric, *matchers):
        return selected(metric, *matchers, variables=self.names)

    def rate(self, metric, *matchers):
        return f"rate({self.of(metric, *matchers)}[$__rate_interval])"

    def sum(self, by, metric, *matchers):
        return f"sum by ({by}) ({self.rate(metric, *matchers)})" if by else f"sum({self.rate(metric, *matchers)})"

    def quantile(self, q, by, metric, *matchers):
        labels = f"le, {by}" if by else "le"
        return f"histogram_quantile({q}, {self.sum(labels, metric, *matchers)})"

    def next(self):
        self.last += 1
        return self.last

    def row(self, title):
        self.at = [0, self.at[1] + self.at[2], 1]
        self.made.with_row(dashboard.Row(title).id(self.next()).grid_pos(models.GridPos(x=0, y=self.at[1], w=WIDTH, h=1)))
        self.at = [0, self.at[1] + 1, 0]

    def add(self, panel, width, height, title, description, unit, targets):
        if self.at[0] + width > WIDTH:
            self.at = [0, self.at[1] + self.at[2], 0]
        panel.id(self.next()).title(title).description(description).unit(unit).datasource(SOURCE)
        panel.grid_pos(models.GridPos(x=self.at[0], y=self.at[1], w=width, h=height))
        self.at = [self.at[0] + width, self.at[1], max(self.at[2], height)]
        for number, (legend, expression) in enumerate(targets):
            query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + number))
            query.datasource(SOURCE)
            if isinstance(panel, table.Panel):
                query.instant().format(queries.PromQueryFormat.TABLE)
            else:
                query.range()
            panel.with_target(query)
        self.made.with_panel(panel)

    def lines(self, title, description, unit, *targets, width=12, stacked=False, most=None):
        panel = timeseries.Panel().min(0).fill_opacity(10).show_points(shapes.VisibilityMode.NEVER)
        panel.legend(
            common.VizLegendOptions().display_mode(shapes.LegendDisplayMode.TABLE)
            .placement(shapes.LegendPlacement.BOTTOM).show_legend(True).calcs(["lastNotNull", "max"])
        ).tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING))
        if stacked:
            panel.fill_opacity(40).stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL))
        if most is not None:
            panel.max(most)
        self.add(panel, width, HEIGHT, title, description, unit, targets)

    def number(self, title, description, unit, expression, steps=(("green", None),), width=4, legend=""):
        panel = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).thresholds(
            dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
            .steps([models.Threshold(color=color, value=value) for color, value in steps])
        )
        self.add(panel, width, 4, title, description, unit, [(legend, expression)])

    def states(self, title, description, words, *targets, width=12):
        mapping = {str(value): models.ValueMappingResult(text=text, color=color) for value, text, color in words}
        panel = statetimeline.Panel().mappings([models.ValueMap(options=mapping)]).fill_opacity(80)
        self.add(panel, width, HEIGHT, title, description, "short", targets)

    def table(self, title, description, unit, *targets, width=12, hide=("Time", "__name__", "job")):
        panel = table.Panel().with_transformation(
            models.DataTransformerConfig(id_val="organize", options={"excludeByName": {name: True for name in hide}})
        )
        self.add(panel, width, HEIGHT, title, description, unit, targets)


SHARE = (("green", None), ("orange", 0.001), ("red", 0.0144))
PROBLEMS = 'code=~"internal_error|overloaded|provider_.+"', 'code!="provider_not_found"', 'client!="none"'


def overview():
    b = Board("weir-overview", "Weir / Overview", "Traffic, errors, latency, and what the cache saves.", [])
    answered, asked = "weir_http_requests_total", "weir_cache_requests_total"
    hits = f'{b.sum("", asked, RESULT_HIT)} / {b.sum("", asked, RESULT_ASKED)}'
    b.number("Requests", "All requests.", "reqps", b.sum("", answered))
    b.number(
        "Error ratio",
        "Share of known clients' requests that ended in a problem of class 5xx. The target is below 0.1 % in 30 days.",
        "percentunit",
        f'(sum({b.rate("weir_http_problems_total", *PROBLEMS)}) or vector(0)) / {b.sum("", answered, NAMED)}',
        SHARE,
    )
    b.number("p99", "99 % of requests take at most this time.", "s", b.quantile(0.99, "", "weir_http_request_duration_seconds_bucket"))
    b.number("Hit ratio", "Share of requests without a call of their own: hit, collapsed, stale. Without bypass.", "percentunit", hits)
    b.number("Calls saved", "Provider calls that were not needed.", "reqps", b.sum("", "weir_upstream_requests_saved_total"))
    b.number("Instances up", "Instances that Prometheus can scrape.", "short", f'sum({selected("up")})', (("red", None), ("green", 1)))

    b.row("Traffic and errors")
    b.lines("Requests by status", "", "reqps", ("{{status}}", b.sum("status", answered)), stacked=True)
    b.lines("Problems by code", "Requests that ended in a problem. docs/API.md lists the codes.", "reqps",
            ("{{code}}", b.sum("code", "weir_http_problems_total")), stacked=True)
    b.lines("Requests by route", "", "reqps", ("{{route}}", b.sum("route", answered)), stacked=True)
    b.lines("Requests by provider", "`none`: no provider. `several`: more than one.", "reqps",
            ("{{provider}}", b.sum("provider", answered)), stacked=True)
    b.lines("Error budget burn", "1: the budget lasts exactly 30 days. The alerts fire at 14.4 (1 h) and 6 (6 h).", "short",
            ("{{job}} 1 h", 'job:weir_broken_promises:ratio_rate1h{job=~"$job"} / 0.001'),
            ("{{job}} 6 h", 'job:weir_broken_promises:ratio_rate6h{job=~"$job"} / 0.001'))
    b.table("Alerts", "Pending and firing.", "short", ("", 'ALERTS{alertname=~"Weir.+"}'), hide=("Time", "__name__", "Value"))

    b.row("Latency")
    took = "weir_http_request_duration_seconds_bucket"
    b.lines("Time to respond", "All requests.", "s",
            *((f"p{q}", b.quantile(q / 100, "", took)) for q in (50, 90, 99)))
    b.lines("p99 by cache result", "`hit`: Weir alone. `miss`: mostly the provider.", "s",
            ("{{cache}}", b.quantile(0.99, "cache", took)))
    b.lines("Weir's own time", "Without the wait for the provider.", "s",
            *((f"p{q}", b.quantile(q / 100, "", "weir_overhead_seconds_bucket")) for q in (50, 99)))
    b.lines("In flight", "Requests, provider calls, and open connections.", "short",
            ("requests", f'sum({b.of("weir_http_requests_in_flight")})'),
            ("calls to providers", f'sum({b.of("weir_upstream_requests_in_flight")})'),
            ("connections", f'sum({b.of("weir_connections")})'))

    b.lines("Sessions watched", "Clients that watch a session. They do not count as in flight.", "short",
            ("{{instance}}", b.of("weir_watchers")))
    b.lines("Events to watchers", "`problem`: a provider began to fail, a session is gone, or a client lost its permission.", "cps",
            ("{{provider}} {{event}}", b.sum("provider, event", "weir_watch_events_total")))

    b.row("Cache")
    b.lines("Hit ratio by provider", "Hit, collapsed and stale, as a share of all but bypass.", "percentunit",
            ("{{provider}}", f'{b.sum("provider", asked, RESULT_HIT)} / {b.sum("provider", asked, RESULT_ASKED)}'), most=1)
    b.lines("Cache results", "", "reqps", ("{{result}}", b.sum("result", asked)), stacked=True)
    b.lines("Calls made and saved", "Provider calls that were made, and calls that were not needed.", "reqps",
            ("made", b.sum("", "weir_upstream_requests_total")),
            ("saved: {{reason}}", b.sum("reason", "weir_upstream_requests_saved_total")), stacked=True)
    b.lines("Entries", "", "short", ("{{provider}}", f'sum by (provider) ({b.of("weir_cache_entries")})'), stacked=True)
    b.lines("Cache size", "Weighed bytes; at most cache.max_bytes per instance.", "bytes",
            ("{{instance}}", b.of("weir_cache_bytes")))
    b.lines("Evictions", "`size` all the time: the cache is too small.", "ops", ("{{cause}}", b.sum("cause", "weir_cache_evictions_total")))

    b.row("Edge and process")
    b.lines("Connections ended by Weir", "`connections` and `connections_per_address`: a flood, or limits too low.", "cps",
            ("{{reason}}", b.sum("reason", "weir_connections_ended_total")))
    b.lines("Failed authentications", "`told`: 401. `limited`: 429 instead.", "reqps",
            ("{{decision}}", b.sum("decision", "weir_auth_failures_total")))
    b.lines("Resident memory", "", "bytes", ("{{instance}}", b.of("process_resident_memory_bytes")), width=8)
    b.lines("CPU", "Cores.", "short", ("{{instance}}", b.rate("process_cpu_seconds_total")), width=8)
    b.lines("Open files", "", "short", ("{{instance}}", b.of("process_open_fds")), ("limit of {{instance}}", b.of("process_max_fds")), width=8)
    return b.made


RESULT_HIT, RESULT_ASKED, NAMED = 'result=~"hit|collapsed|stale"', 'result!="bypass"', 'client!="none"'


def providers():
    b = Board("weir-providers", "Weir / Providers", "Each provider: its responses, its breaker and pauses, and the capacity that is left.",
              [("provider", 'label_values(weir_upstream_breaker_open{job=~"$job"}, provider)')])
    calls, took = "weir_upstream_requests_total", "weir_upstream_request_duration_seconds_bucket"
    b.states("Breaker", "Open: the provider failed repeatedly, and Weir does not call it. The worst instance.",
             ((0, "closed", "green"), (1, "open", "red")),
             ("{{provider}}", f'max by (provider) ({b.of("weir_upstream_breaker_open")})'))
    b.states("Throttled", "The provider requested a pause, under any credential. The worst instance.",
             ((0, "no", "green"), (1, "yes", "orange")),
             ("{{provider}}", f'max by (provider) ({b.of("weir_upstream_throttled")})'))
    b.row("Responses")
    b.lines("Calls by status", "HTTP status, or the kind of failure: connect, tls, timeout, reset, …", "reqps",
            ("{{provider}} {{status}}", b.sum("provider, status", calls)), stacked=True)
    b.lines("Failures by reason", "Attempts without a complete response. `dns`, `refused`, `connect`, `connect_timeout`, `tls`: no connection. "
            "`timeout`, `reset`, `malformed`: connected, but no usable response.", "reqps",
            ("{{provider}} {{reason}}", b.sum("provider, reason", "weir_upstream_failures_total")), stacked=True)
    failed = b.sum("provider", calls, 'status=~"5..|connect|tls|timeout|reset|malformed"', 'status!="503"')
    b.lines("Failed calls", "Share of calls. Throttling (429, 503) does not count.", "percentunit",
            ("{{provider}}", f'{failed} / {b.sum("provider", calls)}'), most=1)
    b.lines("Time to respond", "From the start of a call to the end of the response.", "s",
            *((f"{{{{provider}}}} p{q}", b.quantile(q / 100, "provider", took)) for q in (50, 90, 99)))
    b.lines("p99 by operation", "", "s", ("{{provider}} {{operation}}", b.quantile(0.99, "provider, operation", took)))
    b.lines("Throttling", "Responses 429 and 503 of the provider.", "reqps",
            ("{{provider}} {{status}}", b.sum("provider, status", calls, 'status=~"429|503"')))
    b.lines("Problems by code", "Problems that clients got.", "reqps", ("{{provider}} {{code}}", b.sum("provider, code", "weir_http_problems_total")))

    b.row("Capacity")
    left = f'{b.of("weir_upstream_capacity_left")} / {b.of("weir_upstream_capacity_limit")}'
    b.lines("Capacity left", "Share of the capacity in the provider's file: rate and concurrency. The instance and credential with the least.",
            "percentunit", ("{{provider}} {{kind}}", f"min by (provider, kind) ({left})"), most=1)
    b.lines("Calls refused by Weir", "Reason: pause, breaker, rate, concurrency, share, overload.", "reqps",
            ("{{provider}} {{reason}}", b.sum("provider, reason", "weir_upstream_refused_total")))
    b.lines("Retries", "Calls that failed before the response began: retried (made) or not (refused).", "reqps",
            ("{{provider}} {{result}}", b.sum("provider, result", "weir_upstream_retries_total")))
    b.lines("Mapping failures", "Fields that do not fit the provider's file. Normally 0.", "short",
            ("{{provider}} {{field}} {{reason}}",
             f'sum by (provider, field, reason) (increase({b.of("weir_mapping_failures_total")}[$__range]))'))

    b.row("Cache")
    asked = "weir_cache_requests_total"
    b.lines("Hit ratio", "", "percentunit",
            ("{{provider}}", f'{b.sum("provider", asked, RESULT_HIT)} / {b.sum("provider", asked, RESULT_ASKED)}'), most=1)
    b.lines("Stale responses", "Served because the provider failed, or while Weir refreshes the entry.", "reqps",
            ("{{provider}}", b.sum("provider", asked, 'result="stale"')))
    b.lines("Calls saved", "", "reqps", ("{{provider}} {{reason}}", b.sum("provider, reason", "weir_upstream_requests_saved_total")), stacked=True)
    b.lines("Lifetimes of new entries", "The median, by the rule that set it.", "s",
            ("{{provider}} {{source}}", b.quantile(0.5, "provider, source", "weir_cache_ttl_seconds_bucket")))
    return b.made


def clients():
    b = Board("weir-clients", "Weir / Clients", "Use, limits and key expiry by client.",
              [("client", 'label_values(weir_http_requests_total{job=~"$job"}, client)')])
    answered, limits = "weir_http_requests_total", "weir_rate_limit_requests_total"
    b.lines("Requests by client", "`none`: no valid key.", "reqps", ("{{client}}", b.sum("client", answered)), stacked=True)
    b.lines("Requests by client and provider", "", "reqps", ("{{client}} {{provider}}", b.sum("client, provider", answered)), stacked=True)
    b.lines("Responses by status", "", "reqps", ("{{client}} {{status}}", b.sum("client, status", answered)), stacked=True)
    b.lines("Problems by code", "", "reqps", ("{{client}} {{code}}", b.sum("client, code", "weir_http_problems_total")), stacked=True)
    b.row("Limits")
    b.lines("Limited", "Requests that a policy refused with 429.", "reqps",
            ("{{client}} {{policy}}", b.sum("client, policy", limits, 'decision="limited"')))
    b.lines("Share limited", "Share of the requests under a policy. The alert fires above 50 % for half an hour.", "percentunit",
            ("{{client}} {{policy}}",
             f'{b.sum("client, policy", limits, LIMITED)} / {b.sum("client, policy", limits)}'), most=1)
    b.lines("Decisions", "", "reqps", ("{{client}} {{policy}} {{decision}}", b.sum("client, policy, decision", limits)))
    b.table("Requests in this time range", "", "short",
            ("", f'sort_desc(sum by (client) (increase({b.of(answered)}[$__range])))'), hide=("Time",))
    b.row("Keys")
    b.table("Key expiry", "Time left. `next`: the client's next key. `last`: its last key. Keys without an expiry are not shown.", "s",
            ("", f'min by (client, key) ({b.of("weir_client_key_expiry_timestamp_seconds")}) - time()'), hide=("Time",))
    return b.made


LIMITED = 'decision="limited"'


def config():
    b = Board("weir-config", "Weir / Configuration", "The configuration in use by each instance, and its reloads.", [])
    b.number("Last reload", "1: successful on every instance.", "short", f'min({b.of("weir_config_last_reload_successful")})', (("red", None), ("green", 1)), width=6)
    b.number("Revisions in use", "More than one for a long time: an instance does not get its files.", "short",
             f'count(count by (revision) ({b.of("weir_config_info")}))', (("green", None), ("orange", 2)), width=6)
    b.number("Running versions", "", "short", f'count(count by (version) ({b.of("weir_build_info")}))', (("green", None), ("orange", 2)), width=6)
    b.number("Access log lines lost", "Normally 0. Otherwise the reader of the log is too slow.", "short", f'sum(increase({b.of("weir_access_log_dropped_total")}[$__range]))',
             (("green", None), ("orange", 1)), width=6)
    b.table("Revision by instance", "", "short", ("", b.of("weir_config_info")), hide=("Time", "__name__", "Value"))
    b.table("Version by instance", "", "short", ("", b.of("weir_build_info")), hide=("Time", "__name__", "Value"))
    b.lines("Reloads", "`failure`: refused, and the instance keeps the configuration before.", "short",
            ("{{instance}} {{result}}", f'increase({b.of("weir_config_reloads_total")}[$__rate_interval])'))
    b.states("Last reload by instance", "", ((0, "refused", "red"), (1, "applied", "green")),
             ("{{instance}}", b.of("weir_config_last_reload_successful")))
    b.lines("Time since the configuration was last confirmed", "", "s", ("{{instance}}", f'time() - {b.of("weir_config_last_reload_success_timestamp_seconds")}'))
    b.lines("Uptime", "", "s", ("{{instance}}", f'time() - {b.of("process_start_time_seconds")}'))
    b.table("Certificates", "Time left until the first certificate of each listener's chain expires.", "s",
            ("", f'min by (listener) ({b.of("weir_tls_certificate_expiry_timestamp_seconds")}) - time()'), hide=("Time",))
    return b.made


def main():
    differs = []
    for name, make in (("overview", overview), ("providers", providers), ("clients", clients), ("config", config)):
        text = json.dumps(make().build(), cls=JSONEncoder, sort_keys=True, indent=1) + "\n"
        file = HERE / f"{name}.json"
        if not file.exists() or file.read_text() != text:
            differs.append(name)
            if "--check" not in sys.argv:
                file.write_text(text)
    if differs:
        print("differs from dashboards.py:" if "--check" in sys.argv else "written:", ", ".join(differs))
    return int(bool(differs) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
