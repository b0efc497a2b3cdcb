-- The fleet-wide rate limiter: every decision is one atomic call of this script.
--
-- A log is a sorted set per (key, rate).  One entry stands for all units booked at one instant:
--   member = that instant in microseconds,  score = how many units were booked up to and with it.
-- Both only ever grow, so "the unit that must have left the window" is one lookup by score,
-- O(log L) whatever L and however many units a claim asks for, and a burst is a single entry.
--
-- KEYS: epoch, lost, then for each meter its log and its hold (a hold is a penalty's end).
-- ARGV: mode, now ('' = the Redis clock), the epoch the caller last saw, a nonce, an option of the
--       mode, the number of meters, {limit, window, group} per meter, then {n, {meter, units} * n}.
-- Times are microseconds, in quarters: the finest step a double holds at today's epoch.

if redis.replicate_commands then redis.replicate_commands() end -- Redis 6: TIME before a write

local NEVER = -1e18
local STEP_BACK = 1e6      -- a log this far ahead of the clock means that the clock was set back
local FAKE_TTL = 600000    -- under a test's clock real time says nothing about when a key is stale
local HEADER = 6

local mode, seen, nonce, option = ARGV[1], ARGV[3], ARGV[4], tonumber(ARGV[5])
local fake = ARGV[2] ~= ''

local function fmt(t) return string.format('%.2f', t) end
local function int(n) return string.format('%.0f', n) end
local function quarter(t) return math.ceil(t * 4) / 4 end
local function number(reply) return reply and tonumber(reply) or nil end

local function clock()
  if fake then return quarter(tonumber(ARGV[2])) end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1e6 + tonumber(t[2])
end

local function ttl(now, until_)
  local ms = math.ceil((until_ - now) / 1000) + 1000
  return int(fake and math.max(ms, FAKE_TTL) or ms)
end

local now = clock()

-- A caller that saw another epoch is a witness that Redis lost the logs: whatever started before
-- this epoch was born is forgotten, so every window must be taken to have been full at that moment.
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = fmt(now) .. ':' .. nonce
  redis.call('SET', KEYS[1], epoch)
end
local lost = number(redis.call('GET', KEYS[2])) or NEVER

local function set_lost(at)
  if at <= lost then return end
  lost = at
  redis.call('SET', KEYS[2], fmt(at))
end

if seen ~= '' and seen ~= epoch then set_lost(tonumber(string.match(epoch, '^[^:]+'))) end

local meters = {}

local function meter(i)
  if meters[i] then return meters[i] end
  local arg = HEADER + 3 * (i - 1)
  local m = {log = KEYS[1 + 2 * i], limit = tonumber(ARGV[arg + 1]), window = tonumber(ARGV[arg + 2]),
             group = tonumber(ARGV[arg + 3])}
  local tail = redis.call('ZRANGE', m.log, -1, -1, 'WITHSCORES')
  m.last, m.total = tonumber(tail[1] or NEVER), tonumber(tail[2] or 0)
  m.hold = number(redis.call('GET', KEYS[2 + 2 * i])) or NEVER
  m.pace = m.window / m.limit
  meters[i] = m
  return m
end

-- The first instant at which the window has room for `units` more.
local function room_at(m, units)
  local at = lost + m.window
  local nth = m.total - m.limit + units
  if nth > 0 then
    local row = redis.call('ZRANGEBYSCORE', m.log, int(nth), '+inf', 'LIMIT', 0, 1)
    at = math.max(at, tonumber(row[1]) + m.window)
  end
  return at
end

local function book(m, units, at)
  m.total, m.last, m.dirty = m.total + units, at, true
  redis.call('ZADD', m.log, int(m.total), fmt(at))
end

local function settle()
  for _, m in pairs(meters) do
    if m.dirty then
      redis.call('ZREMRANGEBYSCORE', m.log, '-inf', int(m.total - m.limit))
      redis.call('PEXPIRE', m.log, ttl(now, m.last + m.window))
    end
  end
end

local cursor = HEADER + 3 * tonumber(ARGV[HEADER])

local function next_claims()
  local claims = {}
  for i = 1, tonumber(ARGV[cursor + 1]) do
    claims[i] = {m = meter(tonumber(ARGV[cursor + 2 * i])), units = tonumber(ARGV[cursor + 2 * i + 1])}
  end
  cursor = cursor + 1 + 2 * #claims
  return claims
end

-- When each key by itself could take the claims: {group = instant}.  A key that cannot now is in
-- backlog, and hands out its slots evenly: at the pace of each full window, or, when it waits
-- for another reason (a penalty, a slot that another key pushed back), at its fastest pace.
local function own_slots(claims)
  local own, gap = {}, {}
  for _, c in ipairs(claims) do
    local g = c.m.group
    c.room = room_at(c.m, c.units)
    own[g] = math.max(own[g] or now, c.room, c.m.hold, c.m.last)
    gap[g] = math.min(gap[g] or math.huge, c.m.pace * c.units)
  end
  for _, c in ipairs(claims) do
    local g = c.m.group
    if own[g] > now then
      own[g] = math.max(own[g], c.m.last + (c.room > now and c.m.pace * c.units or gap[g]))
    end
  end
  return own
end

local function slot_of(own)
  local at = now
  for _, t in pairs(own) do at = math.max(at, t) end
  return quarter(at)
end

-- Books one slot on all keys; keys that were free more than `option` earlier are left for later.
local function reserve_one(claims, out)
  local own, unbooked = own_slots(claims), {}
  local at = slot_of(own)
  for i, c in ipairs(claims) do
    if at - own[c.m.group] > option then
      unbooked[#unbooked + 1] = i - 1
    else
      book(c.m, c.units, at)
    end
  end
  out[#out + 1] = fmt(at)
  out[#out + 1] = table.concat(unbooked, ',')
end

-- A start is never in the future, so such a log was written before the clock was set back; keep
-- its units as if they had all started now, or nothing would start until the clock caught up.
local function heal(m)
  if m.last <= now + STEP_BACK then return end
  redis.call('UNLINK', m.log)
  redis.call('ZADD', m.log, int(m.total), fmt(now))
  m.last, m.dirty = now, true
end

local function admit(claims, counts)
  local ready, start = now, now
  for _, c in ipairs(claims) do
    heal(c.m)
    ready = math.max(ready, room_at(c.m, c.units), c.m.hold)
    start = math.max(start, c.m.last) -- microseconds back, after a failover: stay in order
  end
  if counts and ready == now then
    for _, c in ipairs(claims) do book(c.m, c.units, start) end
  end
  return fmt(ready - now)
end

-- Units booked after the instant x: the log is ordered by time too, so a search by rank finds it.
local function units_after(m, x)
  local low, high, before = 0, redis.call('ZCARD', m.log) - 1, nil
  while low <= high do
    local middle = math.floor((low + high) / 2)
    local row = redis.call('ZRANGE', m.log, middle, middle, 'WITHSCORES')
    if tonumber(row[1]) <= x then
      before, low = tonumber(row[2]), middle + 1
    else
      high = middle - 1
    end
  end
  if before then return m.total - before end
  return math.min(m.total, m.limit)
end

local function peek_one(slots, starts, out)
  local used = units_after(starts, now - starts.window)
  if lost + starts.window > now then used = starts.limit end
  local own = own_slots({{m = slots, units = 1}})
  local at = math.max(slot_of(own), room_at(starts, 1))
  local waiting = slots.last > now and units_after(slots, now) or 0
  for _, n in ipairs({used, waiting}) do out[#out + 1] = int(n) end
  for _, t in ipairs({at, math.max(slots.hold, 0)}) do out[#out + 1] = fmt(t) end
end

local function penalise()
  local until_ = ARGV[HEADER + 1] == 'for' and now + option or option
  local held = number(redis.call('GET', KEYS[3])) or NEVER
  if until_ > math.max(now, held) then
    redis.call('SET', KEYS[3], fmt(until_), 'PX', ttl(now, until_))
  end
  return fmt(math.max(until_, held))
end

local out = {epoch, fmt(now)}
if mode == 'reserve' then
  while cursor < #ARGV do reserve_one(next_claims(), out) end
elseif mode == 'admit' or mode == 'check' then
  out[3] = admit(next_claims(), mode == 'admit')
elseif mode == 'peek' then
  for i = 1, tonumber(ARGV[HEADER]), 2 do peek_one(meter(i), meter(i + 1), out) end
elseif mode == 'penalise' then
  out[3] = penalise()
elseif mode == 'lost' then
  set_lost(math.min(option or now, now))
  out[3] = fmt(lost)
end
settle()
return out
