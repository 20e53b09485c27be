#include "sidecar/metrics/http_server.h"

#include <CivetServer.h>
#include <functional>
#include <vector>

#include "protocol/base/steady.h"

namespace dkv {
namespace {

struct Answer {
    int status = 200;
    char const* type = "text/plain; charset=utf-8";
    std::string body;
};

class Page final : public CivetHandler {
public:
    explicit Page(std::function<Answer()> make) : make_(std::move(make)) {}

    bool handleGet(CivetServer* /*server*/, mg_connection* connection) override {
        return send(connection, true);
    }
    bool handleHead(CivetServer* /*server*/, mg_connection* connection) override {
        return send(connection, false);
    }

private:
    bool send(mg_connection* connection, bool with_body) const {
        auto const answer = make_();
        mg_printf(connection,
                  "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
                  "Cache-Control: no-store\r\n\r\n",
                  answer.status, answer.status == 200 ? "OK" : "Service Unavailable", answer.type,
                  answer.body.size());
        if (with_body) mg_write(connection, answer.body.data(), answer.body.size());
        return true;
    }

    std::function<Answer()> make_;
};

Answer yes_or(std::string why_not) {
    if (why_not.empty()) return {.status = 200, .body = "ok\n"};
    return {.status = 503, .body = std::move(why_not) + "\n"};
}

class HttpServer final : public MetricsServer {
public:
    HttpServer(std::string const& address, Metrics const& metrics, Health const& health)
        : metrics_([&metrics] {
              return Answer{.type = "text/plain; version=0.0.4; charset=utf-8",
                            .body = render(metrics)};
          }),
          alive_([&health] { return yes_or(health.why_dead(steady_ms())); }),
          ready_([&health] { return yes_or(health.why_not_ready(steady_ms())); }),
          server_(options(address)) {
        server_.addHandler("/metrics", metrics_);
        server_.addHandler("/healthz", alive_);
        server_.addHandler("/readyz", ready_);
    }

private:
    /// A connection that asks nothing keeps a thread: there are several, and each lets go of it
    /// soon.
    static std::vector<std::string> options(std::string const& address) {
        return {"listening_ports",    address, "num_threads",           "4",
                "request_timeout_ms", "2000",  "keep_alive_timeout_ms", "500"};
    }

    Page metrics_;
    Page alive_;
    Page ready_;
    CivetServer server_;  // Last: its threads use the pages.
};

}  // namespace

Result<std::unique_ptr<MetricsServer>> MetricsServer::start(std::string const& address,
                                                            Metrics const& metrics,
                                                            Health const& health) {
    auto const where = address.find(':') == std::string::npos ? "127.0.0.1:" + address : address;
    // The HTTP server throws where it cannot listen.
    try {
        return std::unique_ptr<MetricsServer>(std::make_unique<HttpServer>(where, metrics, health));
    } catch (std::exception const& error) {
        return Error{ErrorCode::Io, "cannot serve metrics at " + where + ": " + error.what()};
    }
}

}  // namespace dkv
