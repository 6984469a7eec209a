-- Requests with an id of their own each, whichever connection they travel on; with CHECK, every body is examined.
-- BENCH_HEAD and BENCH_BODY come from benches/wire.py: "@" in the body stands for the id; a head may name sessions.
local body = os.getenv("BENCH_BODY")
local sessions = {}
for session in (os.getenv("BENCH_SESSIONS") or ""):gmatch("[^,]+") do
  sessions[#sessions + 1] = "mcp-session-id: " .. session .. "\r\n"
end
if #sessions == 0 then sessions[1] = "" end

local before, middle, after = body:match("^(.-)@(.-)@(.*)$")
if before == nil then
  before, after = body:match("^(.-)@(.*)$")
end
local fixed = #body - (middle and 2 or 1)
local head = "POST /mcp HTTP/1.1\r\nhost: " .. os.getenv("BENCH_HOST") .. "\r\n" .. os.getenv("BENCH_HEAD")
local id = 1000000
local counter = 0
local expected = os.getenv("BENCH_EXPECT")
local open = {}

-- Ids have seven digits as long as a run stays below nine million requests, so the length is known beforehand.
local heads = {}
for index, session in ipairs(sessions) do
  heads[index] = head .. session .. "content-length: " .. (fixed + 7 * (middle and 2 or 1)) .. "\r\n\r\n" .. before
end

function request()
  id = id + 1
  counter = counter + 1
  if expected then open[id] = true end
  local start = heads[counter % #heads + 1]
  if middle then
    return start .. id .. middle .. id .. after
  end
  return start .. id .. after
end

local threads = {}

-- Exact, where wrk's own report is rounded to three digits.
function done(summary)
  io.write(string.format("TOTALS answers=%d bytes=%d\n", summary.requests, summary.bytes))
  for _, thread in ipairs(threads) do
    io.write(string.format("CHECKED right=%d wrong=%d\n", thread:get("right"), thread:get("wrong")))
    if thread:get("wrong") > 0 then
      io.write("SAMPLE " .. thread:get("sample"):gsub("[\r\n]+", " ") .. "\n")
    end
  end
end

if expected then
  right, wrong, sample = 0, 0, ""

  function response(status, headers, text)
    local answered = tonumber(text:match('"id":%s*(%d+)'))
    local good = status == 200 and answered and open[answered]
    if good then
      open[answered] = nil
      if expected == "sum" then
        -- Until 2026-07-28 a structured result is an object, and a bare number is wrapped; since then it may be bare.
        local sum = text:match('"structuredContent":%s*(%d+)') or text:match('"result":%s*(%d+)')
        good = tonumber(sum) == answered + 1
      else
        local _, count = text:gsub('"inputSchema"', "")
        good = count == tonumber(expected)
      end
    end
    if good then
      right = right + 1
    else
      wrong = wrong + 1
      sample = status .. " " .. text:sub(1, 300)
    end
  end

  function setup(thread)
    threads[#threads + 1] = thread
  end
end
