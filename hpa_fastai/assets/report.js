// What the page of a run does: it sorts, filters, browses, draws stains and heat, and saves lists. It fetches nothing.
// All text that comes from files is set as text, never as HTML.
'use strict'
const D = JSON.parse(document.getElementById('data').textContent)
const $ = id => document.getElementById(id)
const all = (selector, at = document) => [...at.querySelectorAll(selector)]

function el(tag, attributes = {}, ...children) {
  const o = document.createElement(tag)
  for (const [k, v] of Object.entries(attributes)) {
    if (k.startsWith('on')) o.addEventListener(k.slice(2), v)
    else if (v === true) o.setAttribute(k, '')
    else if (v !== false && v != null) o.setAttribute(k, v)
  }
  o.append(...children.filter(c => c != null))
  return o
}
const commas = n => n.toLocaleString('en')
const plural = (n, word) => `${commas(n)} ${word}${n === 1 ? '' : 's'}`

// ---- the data: probabilities are 16-bit logits, label sets are those of train.csv

function bytes(base64) { return Uint8Array.from(atob(base64), c => c.charCodeAt(0)) }
function parseSet(text) { return new Set(text ? text.split(' ').map(Number) : []) }

class Images {
  constructor(o) {
    this.ids = o.ids
    this.folds = o.folds
    this.logits = new Int16Array(bytes(o.logits).buffer)
    this.named = o.named.map(parseSet)
    this.true = o.true && o.true.map(parseSet)
  }
  get length() { return this.ids.length }
  logit(row, c) { return this.logits[row * D.labels.length + c] / 2048 }
  prob(row, c) { return 1 / (1 + Math.exp(-this.logit(row, c))) }
  kind(row, c) {   // of a decision: right, wrong, missed, or '' where the label is neither there nor named
    if (this.named[row].has(c)) return this.true[row].has(c) ? 'right' : 'wrong'
    return this.true[row].has(c) ? 'missed' : ''
  }
  sureness(row, c) {   // how far the probability is beyond the threshold, as a logarithm of odds
    const beyond = this.logit(row, c) - THRESHOLD_LOGITS[c]
    return this.named[row].has(c) ? beyond : -beyond
  }
}
const THRESHOLD_LOGITS = D.thresholds.map(p => Math.log(p / (1 - p)))
const known = new Images(D.images), test = D.test && new Images(D.test)
const pictures = new Map(D.pictures.map(([row, uri, heat]) => [row, { uri, heat }]))
const names = set => [...set].sort((a, b) => a - b).map(c => D.labels[c]).join(', ') || 'none'
const KINDS = { right: 'right', wrong: 'wrongly named', missed: 'missed' }

function probText(p) {
  if (p < .0001) return '<\u00a00.0001'
  if (p < .01) return p.toFixed(Math.ceil(-Math.log10(p)))
  if (p > .999) return '>\u00a00.999'
  return p.toFixed(p > .99 ? 3 : 2)
}

// ---- pictures: the four stains lie side by side in one grey picture; a canvas mixes them

const MIX = [[1, 0, 0], [0, 1, 0], [.1, .2, 1], [.35, .3, 0]]   // red, green, blue, yellow
const HOT = [[128, 0, 38], [227, 26, 28], [253, 141, 60], [254, 217, 118], [255, 255, 204]]
const loaded = new Map()

async function stains(row) {   // width, and the grey values of each stain
  if (loaded.has(row)) return loaded.get(row)
  const img = new Image()
  img.src = pictures.get(row).uri
  await img.decode()
  const w = img.naturalWidth / 2, canvas = el('canvas', { width: 2 * w, height: 2 * w })
  const context = canvas.getContext('2d', { willReadFrequently: true })
  context.drawImage(img, 0, 0)
  const planes = [0, 1, 2, 3].map(c => context.getImageData(w * (c % 2), w * (c >> 1), w, w).data)
  if (loaded.size > 200) loaded.delete(loaded.keys().next().value)
  loaded.set(row, { w, planes })
  return { w, planes }
}

function drawHeat(context, w, base64) {
  const values = bytes(base64), n = Math.sqrt(values.length), small = el('canvas', { width: n, height: n })
  const pixels = new ImageData(n, n)
  values.forEach((v, i) => {
    const at = v / 255 * (HOT.length - 1), k = Math.min(Math.floor(at), HOT.length - 2), t = at - k
    for (let j = 0; j < 3; j++) pixels.data[4 * i + j] = HOT[k][j] * (1 - t) + HOT[k + 1][j] * t
    pixels.data[4 * i + 3] = .8 * v
  })
  small.getContext('2d').putImageData(pixels, 0, 0)
  context.imageSmoothingQuality = 'high'
  context.drawImage(small, 0, 0, w, w)
}

async function draw(canvas, row, shown = [true, true, true, true], heat = null) {
  canvas.row = row
  const { w, planes } = await stains(row)
  if (canvas.row !== row) return   // another image has been opened in the meantime
  const only = shown.filter(Boolean).length === 1   // a single stain is shown in white
  const pixels = new ImageData(w, w)
  for (let i = 0; i < w * w; i++) {
    const rgb = [0, 0, 0]
    for (let c = 0; c < 4; c++) {
      if (!shown[c]) continue
      const v = planes[c][4 * i]
      for (let j = 0; j < 3; j++) rgb[j] += only ? v : v * MIX[c][j]
    }
    pixels.data.set([...rgb, 255], 4 * i)
  }
  canvas.width = canvas.height = w
  const context = canvas.getContext('2d')
  context.putImageData(pixels, 0, 0)
  if (heat) drawHeat(context, w, heat)
}

function thumbnail(row, rows = [row]) {
  if (!pictures.has(row)) {
    return el('button', { class: 'thumb none', onclick: () => openDetails(row, rows),
      'aria-label': `image ${known.ids[row]}, numbers only` }, 'numbers only')
  }
  const canvas = el('canvas', { width: 1, height: 1 })
  draw(canvas, row)
  return el('button', { class: 'thumb', onclick: () => openDetails(row, rows),
    'aria-label': `image ${known.ids[row]}: stains, heat and numbers` }, canvas)
}

// ---- saving

function save(name, text) {
  const link = el('a', { href: URL.createObjectURL(new Blob([text], { type: 'text/csv' })), download: name })
  document.body.append(link)
  link.click()
  link.remove()
  setTimeout(() => URL.revokeObjectURL(link.href), 10000)
}
const field = o => /[",\r\n]|^\s|\s$/.test(o) ? `"${String(o).replaceAll('"', '""')}"` : String(o)
const csv = rows => rows.map(row => row.map(field).join(',')).join('\n') + '\n'

function readCsv(text) {
  const rows = [[]]
  let value = '', quoted = false
  const end = () => { rows.at(-1).push(value); value = '' }
  text = text.replace(/^\ufeff/, '')
  for (let i = 0; i < text.length; i++) {
    const o = text[i]
    if (quoted) {
      if (o !== '"') value += o
      else if (text[i + 1] === '"') { value += o; i++ }
      else quoted = false
    } else if (o === '"') quoted = true
    else if (o === ',') end()
    else if (o === '\n') { end(); rows.push([]) }
    else if (o !== '\r' || text[i + 1] !== '\n') value += o
  }
  end()
  return rows.filter(row => row.length > 1 || row[0].trim())
}

function saveImages(images, rows, name) {
  const first = images.true ? ['Id', 'fold', 'Target', 'Predicted'] : ['Id', 'Predicted']
  const set = o => [...o].sort((a, b) => a - b).join(' ')
  save(name, csv([[...first, ...D.labels], ...rows.map(row => {
    const about = images.true ? [images.ids[row], images.folds[row], set(images.true[row])] : [images.ids[row]]
    return [...about, set(images.named[row]), ...D.labels.map((_, c) => images.prob(row, c).toPrecision(4))]
  })]))
}

// ---- labels: sorting and filtering the table that is already there

function setUpLabels() {
  const body = $('labels').tBodies[0], rows = [...body.rows]
  const number = (row, key) => +row.dataset[key]
  function show() {
    const [key, down] = $('label-sort').value.split(' ')
    const text = $('label-find').value.toLowerCase(), word = $('label-verdict').value
    rows.sort((a, b) => key === 'order' || key !== 'name' ? (number(a, key) - number(b, key)) * (down ? -1 : 1)
      : a.dataset.name.localeCompare(b.dataset.name))
    body.append(...rows)
    let n = 0
    for (const row of rows) {
      row.hidden = !(row.dataset.name.toLowerCase().includes(text) && (!word || row.dataset.verdict === word))
      n += !row.hidden
    }
    $('label-count').textContent = n < rows.length ? `shown: ${n} of ${rows.length}` : `${rows.length} labels`
    for (const o of all('[data-sort]', $('labels'))) {
      const sorted = o.dataset.sort.split(' ')[0] === key
      o.parentElement.setAttribute('aria-sort', sorted ? (down ? 'descending' : 'ascending') : 'none')
    }
  }
  for (const o of all('[data-sort]', $('labels'))) {
    o.addEventListener('click', () => {
      const [key, down] = o.dataset.sort.split(' '), now = $('label-sort').value
      const other = down ? key : `${key} down`
      $('label-sort').value = now === o.dataset.sort && all('option', $('label-sort')).some(p => p.value === other)
        ? other : o.dataset.sort
      show()
    })
  }
  for (const id of ['label-sort', 'label-find', 'label-verdict']) $(id).addEventListener('input', show)
  $('label-save').addEventListener('click', () => {
    const keys = ['name', 'f1', 'low', 'high', 'precision', 'recall', 'images', 'verdict']
    const visible = rows.filter(row => !row.hidden).map(row => keys.map(k => row.dataset[k] ?? ''))
    save('labels.csv', csv([['label', 'f1', 'f1_low', 'f1_high', 'precision', 'recall', 'images', 'verdict'], ...visible]))
  })
  show()
}

// ---- confusions: the row of one label in words, and a way to its images

function setUpConfusions() {
  const ends = [...D.labels, 'no label']
  function show() {
    const a = +$('confusion-label').value, row = D.confusion[a], sum = row.reduce((x, y) => x + y, 0)
    const found = row.map((n, b) => [n, b]).filter(([n]) => n).sort((x, y) => y[0] - x[0])
    $('confusion-row').replaceChildren(...found.map(([n, b]) => el('li', {},
      el('span', { class: 'share' }, `${Math.round(100 * n / sum)} %`), ' ',
      b === a ? 'right' : b < D.labels.length ? `taken for ${ends[b]}` : 'only missed',
      ` (${commas(n)})`)))
    if (!found.length) $('confusion-row').replaceChildren(el('li', {}, 'no image has this label'))
  }
  $('confusion-label').addEventListener('input', show)
  show()
}

// ---- browsing all images

let pair = null, found = [], drawn = 0
const PAGE = 24

function cardsOf(row, rows) {
  const shown = [...new Set([...known.true[row], ...known.named[row]])].sort((a, b) => a - b)
  return el('figure', {}, thumbnail(row, rows),
    el('figcaption', {}, el('ul', { class: 'chips' }, ...shown.map(c => {
      const kind = known.kind(row, c)
      return el('li', { class: kind }, el('b', {}, D.labels[c]), ` ${KINDS[kind]}, ${probText(known.prob(row, c))}`)
    })), el('small', { class: 'id' }, known.ids[row]),
    changes.has(row) ? el('small', { class: 'changed' }, `corrected: ${names(changes.get(row))}`) : null))
}

function search() {
  const label = $('image-label').value, kind = $('image-kind').value, sure = $('image-sure').value
  const text = $('image-find').value.toLowerCase(), order = $('image-order').value
  const ranked = []
  for (let row = 0; row < known.length; row++) {
    if ($('image-pictures').checked && !pictures.has(row)) continue
    if (text && !known.ids[row].toLowerCase().includes(text)) continue
    if (pair && !(known.true[row].has(pair[0]) && known.named[row].has(pair[1]) && !known.true[row].has(pair[1]))) continue
    let best = null   // of the decisions that fit, the surest, or the least sure
    const concerned = label !== '' ? [+label] : new Set([...known.true[row], ...known.named[row]])
    for (const c of concerned) {
      const is = known.kind(row, c), s = known.sureness(row, c)
      if (!is || !(kind === 'all' || kind === is || (kind === 'mistake' && is !== 'right'))) continue
      if (sure && (s > 2) !== (sure === 'sure')) continue
      if (best === null || (order === 'unsure' ? s < best : s > best)) best = s
    }
    if (best !== null) ranked.push([row, best])
  }
  if (order !== 'list') ranked.sort((a, b) => order === 'unsure' ? a[1] - b[1] : b[1] - a[1])
  found = ranked.map(o => o[0])
  drawn = 0
  $('gallery').replaceChildren()
  $('pair').hidden = !pair
  if (pair) $('pair').firstElementChild.textContent = `${D.labels[pair[0]]} taken for ${D.labels[pair[1]]}`
  more()
}

function more() {
  for (const row of found.slice(drawn, drawn + PAGE)) $('gallery').append(cardsOf(row, found))
  drawn = Math.min(drawn + PAGE, found.length)
  $('gallery-more').hidden = drawn === found.length
  $('gallery-count').textContent = found.length ? `shown: ${commas(drawn)} of ${plural(found.length, 'image')}`
    : `No image fits${$('image-pictures').checked ? '; try it without “only those with a picture”' : ''}.`
}

function browse({ label = '', kind = 'all', confused = null }) {
  pair = confused
  for (const [id, value] of Object.entries({ label, kind, sure: '', find: '', order: 'sure' })) $(`image-${id}`).value = value
  search()
  if (!found.length) { $('image-pictures').checked = false; search() }
  $('images').scrollIntoView()
  $('image-label').focus({ preventScroll: true })
}

function setUpImages() {
  for (const o of all('#images .filters input, #images .filters select')) o.addEventListener('input', search)
  $('gallery-more').addEventListener('click', more)
  $('pair').lastElementChild.addEventListener('click', () => { pair = null; search() })
  $('image-save').addEventListener('click', () => saveImages(known, found, 'images.csv'))
  for (const o of all('[data-browse]')) {
    o.addEventListener('click', () => {
      const [a, b] = o.dataset.browse.split(' ')
      if (b === undefined) browse({ label: a })
      else browse({ kind: 'mistake', confused: [+a, +b] })
    })
  }
  search()
}

// ---- one image

const details = $('details')
let current = null, among = []

function openDetails(row, rows) {
  [current, among] = [row, rows]
  showDetails()
  if (!details.open) details.showModal()
}

function step(by) {
  const at = among.indexOf(current) + by
  if (at >= 0 && at < among.length) openDetails(among[at], among)
}

function showDetails() {
  const row = current, picture = pictures.get(row), at = among.indexOf(row)
  $('details-title').textContent = known.ids[row]
  $('details-count').textContent = at < 0 ? '' : `${commas(at + 1)} of ${commas(among.length)}`
  $('details-previous').disabled = at <= 0
  $('details-next').disabled = at < 0 || at === among.length - 1
  $('details-picture').hidden = !picture
  $('details-nothing').hidden = !!picture
  if (picture) {
    const heated = Object.keys(picture.heat).map(Number)
    const before = $('details-heat').value
    $('details-heat').replaceChildren(el('option', { value: '' }, 'no heat'),
      ...heated.map(c => el('option', { value: c }, D.labels[c])))
    $('details-heat').value = heated.includes(+before) && before !== '' ? before : ''
    $('details-heat').disabled = !heated.length
    $('details-no-heat').hidden = !!heated.length
    redraw()
  }
  const order = D.labels.map((_, c) => c).sort((a, b) => known.logit(row, b) - known.logit(row, a))
  const important = order.filter((c, i) => i < 5 || known.kind(row, c) || (changes.get(row) ?? known.true[row]).has(c))
  $('details-labels').replaceChildren(...important.map(c => labelRow(row, c)))
  $('details-others').replaceChildren(...order.filter(c => !important.includes(c)).map(c => labelRow(row, c)))
  showEvidence(row)
}

function labelRow(row, c) {
  const p = known.prob(row, c), kind = known.kind(row, c)
  const word = { right: 'listed and named', wrong: 'named, not listed', missed: 'listed, not named', '': 'neither' }[kind]
  const box = el('input', { type: 'checkbox', onchange: e => change(row, c, e.target.checked) })
  box.checked = (changes.get(row) ?? known.true[row]).has(c)
  const meter = el('span', { class: 'meter', title: `probability ${probText(p)}, named from ${probText(D.thresholds[c])}` },
    el('i'), el('u'))
  meter.children[0].style.width = `${100 * p}%`
  meter.children[1].style.left = `${100 * D.thresholds[c]}%`
  return el('li', { class: kind }, el('label', {}, box, el('b', {}, D.labels[c])), meter,
    el('span', { class: 'word' }, `${word}; ${probText(p)}, named from ${probText(D.thresholds[c])}`))
}

function redraw() {
  const heat = $('details-heat').value
  const shown = all('#details-stains input').map(o => o.checked)
  draw($('details-canvas'), current, shown, heat === '' ? null : pictures.get(current).heat[heat])
}

function setUpDetails() {
  for (const o of all('#details-stains input, #details-heat')) o.addEventListener('input', redraw)
  $('details-previous').addEventListener('click', () => step(-1))
  $('details-next').addEventListener('click', () => step(1))
  $('details-close').addEventListener('click', () => details.close())
  details.addEventListener('click', e => { if (e.target === details) details.close() })
  details.addEventListener('keydown', e => {
    if (/^(SELECT|INPUT)$/.test(e.target.tagName) && e.target.type !== 'checkbox') return
    if (e.key === 'ArrowLeft') step(-1)
    if (e.key === 'ArrowRight') step(1)
  })
}

// ---- corrections: new label sets by row, wherever they were ticked

const changes = new Map()
let unsaved = false, stale = false, base = null, doubtsShown = 0, doubts = []   // stale: cards that show an old list

function change(row, c, there) {
  const set = new Set(changes.get(row) ?? known.true[row])
  if (there) set.add(c)
  else set.delete(c)
  const same = set.size === known.true[row].size && [...set].every(o => known.true[row].has(o))
  if (same) changes.delete(row)
  else changes.set(row, set)
  unsaved = changes.size > 0
  stale = true
  showChanges()
}

function showChanges() {
  for (const o of all('#doubts input')) {
    const [row, c, there] = o.dataset.change.split(' ').map(Number)
    o.checked = (changes.get(row) ?? known.true[row]).has(c) === !!there
    const item = o.closest('#doubts > li')
    item.classList.toggle('ticked', changes.has(row))
    all('.after', item)[0].textContent = changes.has(row) ? `corrected: ${names(changes.get(row))}` : ''
  }
  const empty = [...changes].filter(([, set]) => !set.size)
  $('changes-count').textContent = changes.size ? `${plural(changes.size, 'image')} changed` : 'nothing ticked yet'
  $('changes-problem').textContent = empty.length
    ? `${known.ids[empty[0][0]]} would be left without a label: tick another one for it, or take back the tick.` : ''
  $('changes-save').disabled = !changes.size || empty.length > 0
  $('changes').classList.toggle('some', changes.size > 0)
}

function corrected() {   // all rows of train.csv, those that were ticked with their new labels
  const set = o => [...o].sort((a, b) => a - b).join(' ')
  const rows = base ?? [['Id', 'Target'], ...known.ids.map((id, row) => [id, set(known.true[row])])]
  const [id, target] = ['Id', 'Target'].map(o => rows[0].indexOf(o))
  const byId = new Map([...changes].map(([row, labels]) => [known.ids[row], set(labels)]))
  return csv(rows.map((row, i) => i && byId.has(row[id]) ? row.map((o, k) => k === target ? byId.get(row[id]) : o) : row))
}

async function chooseBase(file) {
  base = null
  let said = ''
  if (file) {
    const rows = readCsv(await file.text()), header = rows[0] ?? []
    const at = header.indexOf('Id'), there = new Set(rows.map(row => row[at]))
    const missing = known.ids.filter(o => !there.has(o))
    if (at < 0 || !header.includes('Target')) said = `${file.name} has no columns Id and Target; it is not used.`
    else if (missing.length) said = `${file.name} lacks ${plural(missing.length, 'image')} of this run, such as ${missing[0]}; it is not used.`
    else {
      base = rows
      said = `${file.name}: ${plural(rows.length - 1, 'row')}; their order and all other columns are kept.`
    }
  }
  $('base-said').textContent = said
}

function evidence(doubt) {
  const [row, c, add, ahead, of, alike, asked, duplicate, known_id, cosine] = doubt, label = D.labels[c], lines = []
  if (of) {
    lines.push(add ? `The network finds it likelier here (${probText(known.prob(row, c))}) than in ${commas(ahead)} of the ${commas(of)} images that have it.`
      : `The network finds it less likely here (${probText(known.prob(row, c))}) than in ${commas(ahead)} of the ${commas(of)} images that lack it.`)
  }
  if (asked) lines.push(`Of the ${asked} images that the networks judge most alike, ${alike || 'none'} ${alike === 1 ? 'has' : 'have'} it.`)
  if (known_id) lines.push(`The nearest image that the second network knows, ${known_id} (cosine ${cosine.toFixed(2)}), ${add ? 'has' : 'lacks'} it.`)
  if (duplicate >= 0) {
    lines.push(`Its near-duplicate ${known.ids[duplicate]} is listed as ${names(known.true[duplicate])}.`)
  }
  return { label, lines }
}

function proposal(doubt) {
  const [row, c, add] = doubt, { label, lines } = evidence(doubt)
  const box = el('input', { type: 'checkbox', 'data-change': `${row} ${c} ${add}`,
    onchange: e => change(row, c, e.target.checked === !!add) })
  return el('li', {}, el('label', { class: 'tick' }, box, el('span', {}, add ? 'Add ' : 'Remove ', el('b', {}, label))),
    el('p', { class: 'why' }, lines.join(' ')))
}

function doubtItem(row, rows) {   // an image with all that is doubtful about it
  const about = doubts.filter(o => o[0] === row), twins = [...new Set(about.map(o => o[7]).filter(o => o >= 0))]
  return el('li', {}, el('span', { class: 'pair' }, thumbnail(row, rows), ...twins.map(o => thumbnail(o, [row, o]))),
    el('div', {}, el('small', { class: 'id' }, known.ids[row]), el('p', {}, `listed: ${names(known.true[row])}`),
      el('p', {}, `named: ${names(known.named[row])}`), el('ul', { class: 'proposals' }, ...about.map(proposal)),
      el('p', { class: 'after', role: 'status' })))
}

function showEvidence(row) {
  const about = D.doubts.filter(o => o[0] === row)
  $('details-doubts').replaceChildren(...about.flatMap(o => {
    const { label, lines } = evidence(o)
    return [el('p', {}, el('b', {}, `${o[2] ? 'Add' : 'Remove'} ${label}?`), ' ', lines.join(' '))]
  }))
}

function searchDoubts() {
  const label = $('doubt-label').value, kind = $('doubt-kind').value
  doubts = D.doubts.filter(o => (label === '' || o[1] === +label) &&
    (!kind || (kind === 'duplicate' ? o[7] >= 0 : o[2] === +(kind === 'add'))))
  doubtsShown = 0
  $('doubts').replaceChildren()
  moreDoubts()
}

function moreDoubts() {
  const rows = [...new Set(doubts.map(o => o[0]))]
  for (const row of rows.slice(doubtsShown, doubtsShown + 12)) $('doubts').append(doubtItem(row, rows))
  doubtsShown = Math.min(doubtsShown + 12, rows.length)
  $('doubts-more').hidden = doubtsShown === rows.length
  $('doubts-count').textContent = rows.length
    ? `shown: ${doubtsShown} of ${plural(rows.length, 'image')}, with ${plural(doubts.length, 'label')} to check` : 'None.'
  showChanges()
}

function setUpDoubts() {
  for (const id of ['doubt-label', 'doubt-kind']) $(id).addEventListener('input', searchDoubts)
  $('doubts-more').addEventListener('click', moreDoubts)
  $('changes-save').addEventListener('click', () => { save('train.csv', corrected()); unsaved = false })
  $('changes-base').addEventListener('input', e => chooseBase(e.target.files[0]))
  details.addEventListener('close', () => { if (stale) redrawCards() })
  window.addEventListener('beforeunload', e => { if (unsaved) e.preventDefault() })
  searchDoubts()
}

function redrawCards() {   // a card says that its image was corrected
  const n = drawn
  drawn = 0
  stale = false
  $('gallery').replaceChildren()
  while (drawn < n) more()
}

// ---- test images

let testFound = [], testDrawn = 0

function searchTest() {
  const label = $('test-label').value, text = $('test-find').value.toLowerCase(), order = $('test-order').value
  testFound = test.ids.map((_, row) => row).filter(row =>
    (label === '' || test.named[row].has(+label)) && (!text || test.ids[row].toLowerCase().includes(text)))
  const of = row => label !== '' ? test.logit(row, +label)
    : Math.min(...[...test.named[row]].map(c => test.logit(row, c) - THRESHOLD_LOGITS[c]))
  if (order !== 'list') testFound.sort((a, b) => (of(b) - of(a)) * (order === 'sure' ? 1 : -1))
  testDrawn = 0
  $('test-list').replaceChildren()
  moreTest()
}

function moreTest() {
  for (const row of testFound.slice(testDrawn, testDrawn + 20)) {
    $('test-list').append(el('li', {}, el('small', { class: 'id' }, test.ids[row]), el('ul', { class: 'chips' },
      ...[...test.named[row]].sort((a, b) => test.logit(row, b) - test.logit(row, a))
        .map(c => el('li', {}, el('b', {}, D.labels[c]), ` ${probText(test.prob(row, c))}`)))))
  }
  testDrawn = Math.min(testDrawn + 20, testFound.length)
  $('test-more').hidden = testDrawn === testFound.length
  $('test-count').textContent = `shown: ${commas(testDrawn)} of ${plural(testFound.length, 'image')}`
}

function setUpTest() {
  for (const id of ['test-label', 'test-find', 'test-order']) $(id).addEventListener('input', searchTest)
  $('test-more').addEventListener('click', moreTest)
  $('test-save').addEventListener('click', () => saveImages(test, testFound, 'test.csv'))
  searchTest()
}

for (const o of all('select.labels')) o.append(...D.labels.map((name, c) => el('option', { value: c }, name)))
setUpLabels()
setUpConfusions()
setUpDetails()
setUpDoubts()
setUpImages()
if (test) setUpTest()
document.documentElement.classList.add('ready')
