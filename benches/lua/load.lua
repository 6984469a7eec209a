-- Requests with an id of their own each, whichever connection they travel on; with CHECK, every body is examined.
-- BENCH_REQUESTS is a file with what benches/wire.py wrote: requests that take turns, split by a byte of one. In each,
-- {host}, {length}, and {session} stand for values of a run, and "@" in the body for the id. BENCH_SESSIONS is a file of
-- session ids: the environment has no room for a thousand of them.
local function read(name)
  local file = assert(io.open(os.getenv(name), "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

local sessions = {}
for session in read("BENCH_SESSIONS"):gmatch("%S+") do
  sessions[#sessions + 1] = session
end
if #sessions == 0 then sessions[1] = "" end

-- Ids have seven digits as long as a run stays below nine million requests, so the length is known beforehand.
local starts, middles, ends = {}, {}, {}
local kinds = {}
for text in read("BENCH_REQUESTS"):gmatch("[^\1]+") do
  kinds[#kinds + 1] = text
end
for turn = 1, #kinds * #sessions do
  local text = kinds[(turn - 1) % #kinds + 1]
  local border = text:find("\r\n\r\n", 1, true)
  local head, body = text:sub(1, border + 3), text:sub(border + 4)
  local before, middle, after = body:match("^(.-)@(.-)@(.*)$")
  if before == nil then
    before, after = body:match("^(.-)@(.*)$")
  end
  local ids = middle and 2 or before and 1 or 0
  before = before or body
  local values = {
    host = os.getenv("BENCH_HOST"), length = #body + 6 * ids, session = sessions[math.ceil(turn / #kinds)],
  }
  starts[turn], middles[turn], ends[turn] = (head:gsub("{(%l+)}", values)) .. before, middle, after
end
local id = 1000000
local counter = 0
local expected = os.getenv("BENCH_EXPECT")
local open = {}

function request()
  counter = counter + 1
  local turn = counter % #starts + 1
  if ends[turn] == nil then return starts[turn] end
  id = id + 1
  if expected then open[id] = true end
  local middle = middles[turn]
  if middle then
    return starts[turn] .. id .. middle .. id .. ends[turn]
  end
  return starts[turn] .. id .. ends[turn]
end

-- Random, or else all connections would send at the same time.
local pause = tonumber(os.getenv("BENCH_PAUSE"))
if pause then
  function delay()
    return math.random(0, 2 * pause)
  end
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

  -- One tool each of the shop, the list of them, and the handshake.
  local function of_shop(text)
    if text:find('"isError":%s*true') then return false end
    local _, tools = text:gsub('"inputSchema"', "")
    return tools == 3 or text:find('"serverInfo"') or text:find('total_found\\": ?2251') or
      text:find('estimated_total\\": ?129.5') or text:find('status\\": ?\\"confirmed')
  end

  function response(status, headers, text)
    if status == 202 and text == "" then
      right = right + 1
      return
    end
    local answered = tonumber(text:match('"id":%s*(%d+)'))
    local good = status == 200 and answered and open[answered]
    if good then
      open[answered] = nil
      if expected == "sum" then
        -- Until 2026-07-28 a structured result is an object, and a bare number is wrapped; since then it may be bare.
        local sum = text:match('"structuredContent":%s*(%d+)') or text:match('"result":%s*(%d+)')
        good = tonumber(sum) == answered + 1
      elseif expected == "shop" then
        good = of_shop(text)
      elseif expected == "user" then
        good = tonumber(text:match('"user":%s*(%d+)')) == answered
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
