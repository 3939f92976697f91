vcl 4.1;
# Checks the key, counts a rate limit by client, caches responses.
import vsthrottle;
backend sim { .host = "@SIMHOST@"; .port = "@SIMPORT@"; }
sub vcl_recv {
  if (req.http.X-API-Key != "@KEY@") { return (synth(401)); }
  if (vsthrottle.is_denied(req.http.X-API-Key, 1000000000, 60s)) { return (synth(429)); }
  return (hash);
}
sub vcl_backend_fetch { set bereq.http.x-api-key = "@SIMKEY@"; }
sub vcl_backend_response { set beresp.ttl = 1h; }
sub vcl_deliver { set resp.http.RateLimit-Policy = {""plenty";q=1000000000;w=60"}; }
